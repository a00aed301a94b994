// Every component in a table: sorted by a button in each heading, filtered, shown in portions.

const FIRST = 25;
const MORE = 200;

const COLUMNS = [
  { key: 'rank', title: '#', about: 'rank by |score|', numeric: true, first: 1 },
  { key: 'name', title: 'component', first: 1 },
  { key: 'kind', title: 'kind', first: 1 },
  { key: 'layer', title: 'layer', numeric: true, first: 1 },
  { key: 'position', title: 'position', numeric: true, first: 1 },
  { key: 'score', title: 'score', numeric: true, first: -1, bar: true },
  { key: 'spread', title: 'spread', about: 'standard deviation over prompt pairs', numeric: true, first: -1 },
  { key: 'se', title: 'se', about: 'standard error over resampled pairs', numeric: true, first: -1 },
  { key: 'ranks', title: 'ranks', about: 'rank interval over resampled pairs', first: 1 },
  { key: 'exact', title: 'exact', about: 'exact effect, in brackets its error bar', numeric: true, first: -1 },
  { key: 'error', title: 'est. \u2212 exact', numeric: true, first: -1 },
  { key: 'size', title: 'size', about: 'size of the change made at the component, relative to the residual', numeric: true, first: -1 },
  { key: 'flags', title: 'flags', first: -1 },
];

const table = { sort: COLUMNS[0], direction: 1, limit: FIRST, text: '', kind: '', checked: false };

/** The columns that hold anything; name, score and rank always stay. */
function usedColumns() {
  const used = {
    kind: distinct(components.map((c) => c.kind)).length > 1,
    layer: components.some((c) => c.layer != null),
    position: components.some((c) => c.position != null),
    spread: components.some((c) => isNumber(c.spread)),
    se: components.some((c) => isNumber(c.se)), ranks: components.some((c) => c.ranks),
    exact: audited, error: audited,
    size: components.some((c) => isNumber(c.size)),
    flags: components.some((c) => c.flags.length),
  };
  return COLUMNS.filter((column) => used[column.key] !== false);
}

function startTable() {
  const section = document.getElementById('components');
  const columns = usedColumns();
  // Scores and errors share their decimals, so that the columns can be read across.
  const write = columnWriter([largest], 4);
  for (const column of columns) column.write = column.key === 'size' ? columnWriter(components.map((c) => c.size), 4) : write;
  section.querySelector('thead').append(heading(columns));
  document.getElementById('filters').append(...filters());
  section.querySelector('tbody').addEventListener('click', (event) => {
    const row = event.target.closest('tr[data-id]');
    if (row && (event.target.closest('button') || getSelection().isCollapsed)) pick(Number(row.dataset.id));
  });
  const draw = () => drawTable(columns);
  on('id', draw);
  table.draw = draw;
  draw();
}

function heading(columns) {
  return html('tr', {}, ...columns.map((column) => {
    const button = html('button', { type: 'button', text: column.title, title: column.about });
    button.addEventListener('click', () => {
      table.direction = table.sort === column ? -table.direction : column.first;
      table.sort = column;
      table.draw();
    });
    return html('th', { scope: 'col', class: column.numeric ? 'number' : null, 'data-key': column.key }, button);
  }));
}

function filters() {
  const change = (act) => (event) => { act(event.target); table.limit = FIRST; table.draw(); };
  const search = html('input', { type: 'search', placeholder: 'a2.h3', size: 10, autocomplete: 'off' });
  search.addEventListener('input', change((input) => { table.text = input.value.trim().toLowerCase(); }));
  const parts = [html('label', { text: 'Name ' }, search)];
  const kinds = distinct(components.map((c) => c.kind)).sort(byKind);
  if (kinds.length > 1) {
    const select = html('select', {}, html('option', { value: '', text: 'all' }), ...kinds.map((kind) => html('option', { value: kind, text: plural(kind) })));
    select.addEventListener('change', change((input) => { table.kind = input.value; }));
    parts.push(html('label', { text: 'Kind ' }, select));
  }
  if (audited && components.some((c) => !c.checked)) {
    const box = html('input', { type: 'checkbox' });
    box.addEventListener('change', change((input) => { table.checked = input.checked; }));
    parts.push(html('label', {}, box, ' only checked exactly'));
  }
  document.getElementById('filters').addEventListener('submit', (event) => event.preventDefault());
  return parts;
}

/** Rows that pass the filters, in order; rows without a value come last either way. */
function sortedRows() {
  const { sort, direction } = table;
  const rows = components.filter((c) =>
    (!table.kind || c.kind === table.kind) && (!table.checked || c.checked) && c.name.toLowerCase().includes(table.text));
  const value = (c) => (sort.key === 'flags' ? c.flags.join('; ') || null : c[sort.key]);
  return rows.sort((a, b) => {
    const [first, second] = [value(a), value(b)];
    if (first == null || second == null) return (first == null) - (second == null) || a.rank - b.rank;
    const order = sort.numeric ? first - second : first.localeCompare(second, 'en', { numeric: true });
    return direction * order || a.rank - b.rank;
  });
}

function drawTable(columns) {
  const section = document.getElementById('components');
  for (const th of section.querySelectorAll('th[data-key]')) {
    const sorted = th.dataset.key === table.sort.key;
    if (sorted) th.setAttribute('aria-sort', table.direction > 0 ? 'ascending' : 'descending');
    else th.removeAttribute('aria-sort');
  }
  const rows = sortedRows();
  const visibleRows = rows.slice(0, table.limit);
  const chosen = components[choice.id];
  const pinned = chosen && !visibleRows.includes(chosen);
  const focused = document.activeElement?.closest('tbody tr[data-id]')?.dataset.id;
  const body = section.querySelector('tbody');
  body.replaceChildren(...(pinned ? [drawRow(chosen, columns, true)] : []), ...visibleRows.map((c) => drawRow(c, columns, false)));
  if (focused) body.querySelector(`tr[data-id="${focused}"] button`)?.focus();
  document.getElementById('count').textContent = countSentence(visibleRows.length, rows.length, pinned);
  const more = document.getElementById('more-components');
  more.replaceChildren(...(rows.length > table.limit ? [moreButton(Math.min(MORE, rows.length - table.limit), () => { table.limit += MORE; table.draw(); })] : []));
}

function countSentence(visibleCount, found, pinned) {
  const of = data.shown?.of ?? components.length;
  const filtered = found < components.length ? ` that match (${thousands(components.length)} in this page)` : '';
  const left = of > components.length ? ` This page holds the strongest and the checked ones of ${thousands(of)} scored.` : '';
  return `Showing ${thousands(visibleCount)} of ${thousands(found)}${filtered}${pinned ? ', and the chosen one first' : ''}.${left}`;
}

function moreButton(count, act) {
  const button = html('button', { type: 'button', text: `Show ${thousands(count)} more` });
  button.addEventListener('click', act);
  return button;
}

function drawRow(component, columns, pinned) {
  const chosen = component.id === choice.id;
  return html('tr', { 'data-id': component.id, 'data-name': component.name, class: pinned ? 'pinned' : null, 'aria-current': chosen ? 'true' : null },
    ...columns.map((column) => drawField(component, column)));
}

function drawField(component, column) {
  const value = component[column.key];
  if (column.key === 'name') {
    return html('th', { scope: 'row' }, html('button', { type: 'button', class: 'name', text: value, 'aria-pressed': String(component.id === choice.id) }));
  }
  if (column.key === 'flags') return html('td', { class: 'flags', text: value.join('; ') });
  if (!column.numeric) return html('td', { text: value });
  if (['rank', 'layer', 'position'].includes(column.key)) return html('td', { class: 'number', text: value ?? '\u2013' });
  const text = column.key === 'exact' ? exactText(component, column.write, '\u2013')
    : column.key === 'error' && !component.checked ? '\u2013' : column.write(value);
  if (!column.bar) return html('td', { class: 'number', text });
  const bar = html('span', { class: value < 0 ? 'bar negative' : 'bar', 'aria-hidden': 'true' });
  bar.style.setProperty('--share', `${(50 * Math.abs(value ?? 0) / largest).toFixed(1)}%`);
  return html('td', { class: 'number' }, html('span', { class: 'barred' }, bar, html('span', { text })));
}
