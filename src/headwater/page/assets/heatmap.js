// Heat maps: layers by heads (and whatever else a layer has one of), components by positions.

const ROWS = 48;
const CELLS = 20000;

/** The grids to draw, and how many components fit in none of them. */
function planMaps() {
  const inLayers = components.filter((c) => c.layer != null && c.position == null && !inStrip(c));
  const atPositions = components.filter((c) => c.position != null && !inStrip(c));
  const grids = [];
  if (inLayers.length) grids.push(layerGrid(inLayers));
  if (atPositions.length) grids.push(positionGrid(atPositions));
  const strips = components.filter(inStrip).length;
  return { grids, outside: components.length - inLayers.length - atPositions.length - strips };
}

const byKind = (a, b) => kindOrder(a) - kindOrder(b) || a.localeCompare(b);
const distinct = (values) => [...new Set(values)];
const ascending = (a, b) => a - b;

function layerGrid(members) {
  const layers = distinct(members.map((c) => c.layer)).sort(ascending);
  const groups = distinct(members.map((c) => c.kind)).sort(byKind).map((kind) => {
    const own = members.filter((c) => c.kind === kind);
    const single = own.every((c) => !c.index);
    const indices = single ? [0] : distinct(own.map((c) => c.index ?? 0)).sort(ascending);
    return { kind, title: single && kind === 'mlp' ? 'MLP' : plural(kind), columns: indices.map((index) => ({ label: single ? '' : index, key: `${kind} ${index}` })) };
  });
  const at = new Map(members.map((c) => [`${c.layer} ${c.kind} ${c.index ?? 0}`, c]));
  const rows = layers.map((layer) => ({ label: layer, key: layer }));
  return {
    name: 'By layer', corner: 'layer', groups, rows, of: rows.length,
    component: (row, column) => at.get(`${row.key} ${column.key}`),
  };
}

function positionGrid(members) {
  const positions = distinct(members.map((c) => c.position)).sort(ascending);
  const tokens = data.pairs?.[0]?.clean ?? [];
  const columns = positions.map((position) => ({ label: position, key: position, token: tokens[position] }));
  const bases = new Map();
  for (const c of members) {
    const row = bases.get(c.base) ?? { label: c.base, key: c.base, first: c, peak: 0 };
    row.peak = Math.max(row.peak, Math.abs(c.score ?? 0));
    bases.set(c.base, row);
  }
  const all = [...bases.values()];
  const inOrder = (a, b) =>
    kindOrder(a.first.kind) - kindOrder(b.first.kind) || a.first.layer - b.first.layer || a.first.index - b.first.index;
  const kept = Math.max(1, Math.min(ROWS, Math.floor(CELLS / columns.length)));
  const strongest = [...all].sort((a, b) => b.peak - a.peak).slice(0, kept).sort(inOrder);
  const at = new Map(members.map((c) => [`${c.base} ${c.position}`, c]));
  return {
    name: 'By position', corner: 'position', groups: [{ kind: '', title: 'position', columns }],
    rows: strongest, of: all.length, tokens: columns.some((column) => column.token != null),
    component: (row, column) => at.get(`${row.key} ${column.key}`),
  };
}

/** One grid as a figure; its cells are the grid's only tab stop and arrows move between them. */
function drawMap(grid) {
  const columns = grid.groups.flatMap((group) => group.columns);
  const body = html('div', { role: 'grid', class: 'map', 'aria-label': `${grid.name}: heat map of the scores`, 'aria-readonly': 'true' });
  // A narrow empty track parts the groups.
  const tracks = grid.groups.map((group) => `repeat(${group.columns.length}, minmax(var(--least), var(--most)))`);
  body.style.gridTemplateColumns = `max-content ${tracks.join(' 0.6rem ')}`;
  body.style.setProperty('--row', grid.rows.length > 16 ? '1.4rem' : grid.rows.length > 6 ? '2rem' : '3.1rem');
  body.append(...headers(grid, columns));
  const write = columnWriter([largest], 2);
  const matrix = grid.rows.map((row) => {
    const line = html('div', { role: 'row' }, html('span', { role: 'rowheader', text: row.label }));
    const cells = grid.groups.flatMap((group, place) => {
      if (place) line.append(html('span', { class: 'gap' }));
      return group.columns.map((column) => {
        const cell = drawCell(grid.component(row, column));
        line.append(cell);
        return cell;
      });
    });
    body.append(line);
    return cells;
  });
  // In a large grid the many numbers near zero would only be noise.
  body.classList.toggle('dense', body.querySelectorAll('.cell').length > 60);
  paint(matrix, write);
  on('value', () => paint(matrix, write));
  on('scale', () => paint(matrix, write));
  on('id', () => body.querySelectorAll('[data-id]').forEach((cell) => cell.setAttribute('aria-selected', Number(cell.dataset.id) === choice.id)));
  walk(body, matrix);
  // Numbers in the cells where there is room for them.
  new ResizeObserver(() => {
    const cell = body.querySelector('[data-id]');
    body.classList.toggle('numbered', cell.clientWidth >= 38);
  }).observe(body);
  return mapFigure(grid, body);
}

function headers(grid, columns) {
  const lines = [];
  const line = (corner, cells) => lines.push(html('div', { role: 'row' }, html('span', { class: 'corner', text: corner }), ...cells));
  const spaced = (make) => grid.groups.flatMap((group, place) => [...(place ? [html('span', { class: 'gap' })] : []), ...make(group)]);
  line('', spaced((group) => {
    const title = html('span', { class: 'group', text: group.title });
    title.style.gridColumn = `span ${group.columns.length}`;
    return [title];
  }));
  if (grid.tokens) line('', columns.map((column) => html('span', { class: 'turned' }, html('bdi', { text: visible(column.token ?? '') }))));
  line(grid.corner === 'layer' ? 'layer' : '', spaced((group) => group.columns.map((column) => html('span', { role: 'columnheader', text: column.label }))));
  return lines;
}

function drawCell(component) {
  if (!component) return html('span', { class: 'empty' });
  const cell = html('span', {
    role: 'gridcell', class: 'cell', tabindex: -1, 'data-id': component.id, 'data-name': component.name,
    'aria-selected': 'false', 'aria-label': spoken(component),
  });
  if (component.flags.length) cell.classList.add('flagged');
  return cell;
}

/** Color and number of every cell, from the chosen value and scale. */
function paint(matrix, write) {
  for (const cell of matrix.flat()) {
    if (!cell.dataset.id) continue;
    const value = components[cell.dataset.id][choice.value];
    cell.classList.toggle('negative', value < 0);
    cell.classList.toggle('unknown', !isNumber(value));
    cell.classList.toggle('weak', Math.abs(value) < largest / 20);
    cell.style.setProperty('--share', `${isNumber(value) ? (100 * strength(value)).toFixed(1) : 0}%`);
    const absent = components[cell.dataset.id].checked || choice.value === 'score' ? 'n/a' : '';
    cell.textContent = isNumber(value) ? write(value) : absent;
  }
}

function walk(body, matrix) {
  const where = new Map();
  matrix.forEach((line, row) => line.forEach((cell, column) => where.set(cell, [row, column])));
  const cells = matrix.flat().filter((cell) => cell.dataset.id);
  let stop = cells.reduce((best, cell) => (components[cell.dataset.id].rank < components[best.dataset.id].rank ? cell : best));
  stop.tabIndex = 0;
  const cellOf = (event) => event.target.closest('[data-id]');
  const show = (cell) => showTip(components[cell.dataset.id], cell.getBoundingClientRect());
  body.addEventListener('focusin', (event) => {
    const cell = cellOf(event);
    if (!cell) return;
    stop.tabIndex = -1;
    stop = cell;
    stop.tabIndex = 0;
    show(cell);
  });
  body.addEventListener('focusout', hideTip);
  body.addEventListener('pointerover', (event) => (cellOf(event) ? show(cellOf(event)) : hideTip()));
  body.addEventListener('pointerleave', hideTip);
  body.addEventListener('click', (event) => cellOf(event) && pick(Number(cellOf(event).dataset.id)));
  body.addEventListener('keydown', (event) => {
    const cell = cellOf(event);
    if (!cell) return;
    const [row, column] = where.get(cell);
    if (event.key === 'Enter' || event.key === ' ') pick(Number(cell.dataset.id));
    else if (ARROWS[event.key]) nextCell(matrix, row, column, ...ARROWS[event.key])?.focus();
    else if (event.key === 'Home') matrix[row].find((other) => other.dataset.id).focus();
    else if (event.key === 'End') matrix[row].findLast((other) => other.dataset.id).focus();
    else return;
    event.preventDefault();
  });
}

/** The next scored cell in a direction; places without a component are stepped over. */
function nextCell(matrix, row, column, across, down) {
  for (;;) {
    row += down;
    column += across;
    const cell = matrix[row]?.[column];
    if (!cell || cell.dataset.id) return cell;
  }
}

function mapFigure(grid, body) {
  const figure = html('figure', { class: 'mapped' }, html('h2', { text: grid.name }), html('div', { class: 'scroll' }, body), legend());
  const words = [`A score is what ${metricName} loses when the component is switched off; positive supports the behavior.`];
  if (data.metric.sense) words.push(`The metric ${data.metric.sense}.`);
  if (grid.rows.length < grid.of) words.push(`Showing the strongest ${thousands(grid.rows.length)} of ${thousands(grid.of)} rows; the table has all.`);
  if (grid.tokens) words.push('Tokens are those of the first clean prompt.');
  const flags = distinct(components.filter((c) => !inStrip(c)).flatMap((c) => c.flags));
  if (flags.length) words.push(`A marked corner means: ${flags.join(', or ')}.`);
  figure.append(html('figcaption', { text: words.join(' ') }));
  return figure;
}

/** The color bar: symmetric about zero, with what each end means. */
function legend() {
  const bar = html('div', { class: 'legend' });
  const write = columnWriter([largest], 2);
  const draw = () => {
    const half = largest * (choice.scale === 'root' ? 0.25 : 0.5);
    const ends = choice.value === 'error' ? ['too low', 'too high'] : ['opposes', 'supports'];
    bar.replaceChildren(
      html('span', { class: 'title', text: `${shownWord()}, in ${metricName}${choice.value === 'score' || components.every((c) => c.checked) ? '' : '; hatched: not checked'}` }),
      html('span', { class: 'end', text: ends[0] }), html('span', { class: 'ramp' }), html('span', { class: 'end', text: ends[1] }),
      html('span', { class: 'ticks' }, ...[-largest, -half, 0, half, largest].map((value) => html('span', { text: write(value) }))),
    );
  };
  draw();
  on('value', draw);
  on('scale', draw);
  return bar;
}
