// The controls, and what follows what.

function selection(name, legend, groups, chosen) {
  const select = html('select', { id: name }, ...groups.map(([title, options]) => {
    const nodes = options.map(([value, text]) => html('option', { value, text, selected: value === chosen }));
    return title ? html('optgroup', { label: title }, ...nodes) : nodes[0];
  }));
  select.addEventListener('change', () => change({ [name]: Number(select.value) }));
  return html('div', { class: 'choice' }, html('label', { for: name, text: legend }), select);
}

const GROUPS = { KL: 'divergence', rank: 'rank', distance: 'other distances', own: 'of the layer itself' };

function controls() {
  const kinds = [...new Set(statistics.map(({ group }) => group))];
  const groups = kinds.map((kind) => [GROUPS[kind] ?? kind, statistics.map((one, place) => [place, one.name]).filter(([place]) => statistics[place].group === kind)]);
  const bar = document.getElementById('toolbar');
  bar.append(selection('statistic', 'Color', groups, state.statistic));
  if (prompts.length < 2) return;
  // tokens of whole words hold no blank of their own
  const between = data.vocabulary.some((token) => token.startsWith(SPACE)) ? '' : ' ';
  const names = prompts.map(({ tokens }, place) => [null, [[place, `${place + 1}: ${tokens.slice(0, 8).map((token) => split(token).map((part) => part.replaceAll(SPACE, ' ')).join('')).join(between).trim().slice(0, 48)}`]]]);
  bar.append(selection('prompt', `Prompt (${prompts.length})`, names, state.prompt));
}

function moved(event) {
  const { key, ctrlKey } = event;
  const { row, position } = state;
  const page = Math.max(1, Math.floor((sizes.width - sizes.names) / sizes.cell));
  if (ARROWS[key]) return { row: clamp(row - ARROWS[key][1], 0, FINAL), position: clamp(position + ARROWS[key][0], 0, positions() - 1) };
  if (key === 'Home') return { row: ctrlKey ? FINAL : row, position: 0 };
  if (key === 'End') return { row: ctrlKey ? 0 : row, position: positions() - 1 };
  if (key === 'PageUp') return { row, position: Math.max(0, position - page) };
  if (key === 'PageDown') return { row, position: Math.min(positions() - 1, position + page) };
  return null;
}

function pressed(event) {
  if (event.altKey || event.metaKey) return;
  const to = moved(event);
  if (to) {
    change(to);
    intoView();
  } else if (event.key === 'Enter' || event.key === ' ') pin(state.row, state.position);
  else if (event.key === 'Escape') change({ pins: [] });
  else if (event.key === 's' && !event.ctrlKey) change({ statistic: (state.statistic + 1) % statistics.length });
  else if (event.key === 'S') change({ statistic: (state.statistic + statistics.length - 1) % statistics.length });
  else return;
  event.preventDefault();
  announce();
}

function followChanges(changes) {
  if ('prompt' in changes) {
    measureMap();
    [box.scrollLeft, box.scrollTop] = [0, 0];
  }
  for (const name of ['prompt', 'statistic']) {
    const select = document.getElementById(name);
    if (select) select.value = state[name];
  }
  if ('statistic' in changes) document.getElementById('explain').textContent = statistic().explain;
  if (['prompt', 'statistic', 'pins'].some((name) => name in changes)) drawPins();
  drawPanel();
  drawLegend();
  ask();
}

function listen() {
  box.addEventListener('scroll', ask, { passive: true });
  box.addEventListener('keydown', pressed);
  box.addEventListener('focus', () => box.matches(':focus-visible') && announce());
  canvas.addEventListener('pointermove', (event) => {
    const cell = event.pointerType === 'touch' ? null : cellAt(event);
    if (cell && (cell.row !== state.row || cell.position !== state.position)) change(cell);
  });
  canvas.addEventListener('click', (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    change(cell);
    pin(cell.row, cell.position);
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && !event.target.closest('#map, select') && state.pins.length) change({ pins: [] });
  });
  addEventListener('hashchange', () => { change(recalled()); intoView(); });
  addEventListener('scroll', hideTip, { passive: true });
  darkness.addEventListener('change', () => { measureMap(); drawLegend(); });
  let wide = 0;
  new ResizeObserver(() => {
    measureMap();
    if (Math.abs(pinBox.clientWidth - wide) < 1) return;
    wide = pinBox.clientWidth;
    drawPins();
  }).observe(box);
}

if (prompts.length) {
  Object.assign(state, recalled());
  controls();
  on(followChanges);
  listen();
  measureMap();
  followChanges({ prompt: state.prompt, statistic: state.statistic, pins: state.pins });
  intoView();
}
