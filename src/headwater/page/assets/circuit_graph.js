// The picture: chips, edges behind them, names of layers and tokens that never scroll away.

const frame = document.getElementById('box');
const graph = document.getElementById('graph');
let marks = new Map();
let drawnEdges = 0;
const layers = { lines: svg('g'), weak: svg('g', { class: 'edges' }), strong: svg('g', { class: 'edges' }), chips: svg('g') };

/** Whether the nodes to show are those that are drawn. */
const isDrawn = () => nodes.every((node) => isShown(node) === marks.has(node.id));

/** Draw everything anew: other nodes, another layout, other room. */
function drawGraph() {
  const held = document.activeElement?.closest?.('#graph [data-id]')?.dataset.id;
  const small = frame.clientWidth < 600;
  const side = state.layout === 'site' ? 54 : 44;
  const plan = layout(nodes.filter(isShown), Math.max(frame.clientWidth - side - 1, small ? 460 : 0));
  frame.style.gridTemplateColumns = `${side}px ${Math.ceil(plan.width)}px`;
  marks = new Map(plan.marks.map((mark) => [mark.node.id, mark]));
  const [width, height] = [Math.ceil(plan.width), Math.ceil(plan.height)];
  graph.replaceChildren(svg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, class: 'picture', role: 'group', 'aria-label': 'The circuit: arrow keys go from node to node' },
    layers.lines, layers.weak, layers.strong, layers.chips));
  layers.lines.replaceChildren(
    ...plan.names.map((band, place) => svg('rect', { x: 0, y: band.top, width, height: band.height, class: place % 2 ? 'band odd' : 'band' })),
    ...(state.layout === 'position' ? plan.heads.slice(1).map((head) => line(head.left, 0, head.left, height, 'grid')) : []),
    ...plan.labels.map((one) => label(one.x, one.y + 4, one.text, 'end', 'where')));
  layers.chips.replaceChildren(...plan.marks.map(drawChip));
  drawHeads(plan);
  const stop = layers.chips.querySelector(`[data-id="${held ?? state.chosen}"]`) ?? layers.chips.querySelector('[data-id]');
  stop?.setAttribute('tabindex', 0);
  if (held != null) stop?.focus();
  drawEdges();
}

function drawHeads(plan) {
  const cells = plan.heads.map((head) => {
    const cell = html('div', { class: head.turned ? 'column turned' : 'column', title: head.text }, ...(head.number == null ? [] : [html('i', { text: head.number })]), html('bdi', { text: head.text }));
    cell.style.width = `${head.width}px`;
    return cell;
  });
  document.getElementById('heads').replaceChildren(...cells);
  document.getElementById('heads').className = state.layout === 'position' ? 'tokens' : 'titles';
  document.getElementById('names').replaceChildren(...plan.names.map((band) => {
    const cell = html('div', { class: 'row', text: band.text });
    [cell.style.top, cell.style.height] = [`${band.top}px`, `${band.height}px`];
    return cell;
  }));
}

const SHAPES = {
  feature: (w, h) => [svg('rect', { x: -w / 2, y: -h / 2, width: w, height: h, rx: h / 2, class: 'body' })],
  error: (w, h) => [svg('path', { d: hexagon(w, h), class: 'body' })],
  site: (w, h) => [svg('rect', { x: -w / 2, y: -h / 2, width: w, height: h, class: 'body' }),
    svg('rect', { x: -w / 2 + 2.5, y: -h / 2 + 2.5, width: w - 5, height: h - 5, class: 'inner' })],
  metric: (w, h) => [svg('rect', { x: -w / 2, y: -h / 2, width: w, height: h, rx: 4, class: 'body' })],
};

function hexagon(w, h) {
  const corner = h * 0.38;
  return `M${-w / 2 + corner} ${-h / 2}H${w / 2 - corner}L${w / 2} 0L${w / 2 - corner} ${h / 2}H${-w / 2 + corner}L${-w / 2} 0Z`;
}

function drawChip(mark) {
  const { node } = mark;
  const text = svg('text', { x: -mark.width / 2 + mark.pad, y: mark.font * 0.34 }, svg('tspan', { text: mark.name }));
  text.style.fontSize = `${mark.font.toFixed(1)}px`;
  if (mark.said) text.append(svg('tspan', { dx: 5, class: 'said', text: mark.said }));
  const chip = svg('g', {
    class: `node ${node.kind}${node.effect < 0 ? ' negative' : ''}`, transform: `translate(${mark.x.toFixed(1)} ${mark.y.toFixed(1)})`,
    'data-id': node.id, 'data-name': node.name, tabindex: -1, role: 'button', 'aria-label': spoken(node), 'aria-pressed': String(node.id === state.chosen),
  }, ...SHAPES[node.kind](mark.width, mark.height), text);
  if (node.orphan) chip.append(svg('circle', { cy: mark.height / 2 + 3.5, r: 2.6, class: 'lost' }));
  chip.style.setProperty('--share', `${(STRONGEST * Math.sqrt(size(node.effect) / largestEffect)).toFixed(0)}%`);
  return chip;
}

/** Every edge above the threshold. */
function drawEdges() {
  const able = edges.filter((edge) => isStrong(edge) && between(edge));
  drawnEdges = able.length;
  layers.weak.replaceChildren(...paths(able, marks));
  drawFocus();
}

/** What depends on who is chosen, pointed at or looked for: all edges of a node, and how chips look. */
function drawFocus() {
  const focus = focused() == null ? null : nodes[focused()];
  const own = focus ? [...focus.into, ...focus.out].filter(between) : [];
  layers.weak.classList.toggle('faint', focus != null || state.text !== '');
  layers.strong.replaceChildren(...paths(own, marks));
  const near = new Set(own.flatMap((edge) => [edge.source.id, edge.target.id]));
  for (const chip of layers.chips.children) {
    const node = nodes[chip.dataset.id];
    const lit = focus ? node === focus || near.has(node.id) : !state.text || matches(node);
    chip.classList.toggle('dim', !lit);
    chip.classList.toggle('read', node.id === told());
    chip.classList.toggle('found', Boolean(state.text) && matches(node));
    chip.setAttribute('aria-pressed', String(node.id === state.chosen));
  }
}

/** The nearest chip in a direction, by distance along it and twice the distance beside it. */
function nextChip(id, across, down) {
  const from = marks.get(id);
  let [best, least] = [null, Infinity];
  for (const mark of marks.values()) {
    const along = across * (mark.x - from.x) + down * (mark.y - from.y);
    const beside = Math.abs(across ? mark.y - from.y : mark.x - from.x);
    const far = along + 2 * beside;
    if (along > 3 && far < least) [best, least] = [mark.node.id, far];
  }
  return best;
}

const chipOfId = (id) => layers.chips.querySelector(`[data-id="${id}"]`);

function showTip(node, box) {
  const lines = [[node.kind === 'metric' ? 'clean prompts' : 'effect', digits(node.effect) + spread(node)]];
  if (isNumber(node.exact)) lines.push(['exact', digits(node.exact)]);
  if (node.annotation) lines.push(['annotation', node.annotation]);
  if (node.orphan) lines.push(['orphan', 'nothing flows in']);
  placeTip(box, [html('b', { text: node.name })], lines);
}

function startGraph() {
  const chipAt = (event) => event.target.closest?.('[data-id]');
  const show = (chip) => {
    change({ pointed: Number(chip.dataset.id), read: Number(chip.dataset.id) });
    showTip(nodes[chip.dataset.id], chip.getBoundingClientRect());
  };
  const leave = () => { hideTip(); change({ pointed: null }); };
  graph.addEventListener('pointerover', (event) => {
    if (event.pointerType === 'touch') return;
    if (chipAt(event)) show(chipAt(event));
    else leave();
  });
  graph.addEventListener('pointerleave', leave);
  graph.addEventListener('click', (event) => { if (chipAt(event)) pick(Number(chipAt(event).dataset.id)); });
  graph.addEventListener('focusin', (event) => {
    const chip = chipAt(event);
    if (!chip) return;
    layers.chips.querySelectorAll('[tabindex="0"]').forEach((other) => other.setAttribute('tabindex', -1));
    chip.setAttribute('tabindex', 0);
    if (chip.matches(':focus-visible')) show(chip);
  });
  graph.addEventListener('focusout', leave);
  graph.addEventListener('keydown', (event) => {
    const chip = chipAt(event);
    if (!chip) return;
    const id = Number(chip.dataset.id);
    if (event.key === 'Enter' || event.key === ' ') pick(id);
    else if (ARROWS[event.key]) chipOfId(nextChip(id, ...ARROWS[event.key]))?.focus();
    else return;
    event.preventDefault();
  });
}
