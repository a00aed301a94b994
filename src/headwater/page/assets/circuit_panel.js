// Beside the picture: everything known of one node, or a list of nodes.

const panel = document.getElementById('panel');
const FIRST = 12;

/** A bar from a middle line: right where it supports, left where it opposes. */
function barOf(value, largest) {
  const bar = html('span', { class: value < 0 ? 'flow negative' : 'flow', 'aria-hidden': 'true' });
  bar.style.setProperty('--share', `${Math.min(50, 50 * size(value) / (largest || 1)).toFixed(1)}%`);
  return bar;
}

/** A table whose first rows are shown, and all if so asked. */
function shortTable(heading, head, rows) {
  const body = html('tbody', {}, ...rows.slice(0, FIRST).map((make) => make()));
  const parts = [html('h4', { text: heading }), html('table', {}, html('thead', {}, html('tr', {}, ...head.map(([text, kind]) => html('th', { scope: 'col', class: kind, text })))), body)];
  if (rows.length > FIRST) {
    const more = html('button', { type: 'button', class: 'more', text: `Show all ${thousands(rows.length)}` });
    more.addEventListener('click', () => { body.append(...rows.slice(FIRST).map((make) => make())); more.remove(); });
    parts.push(more);
  }
  return parts;
}

/** A node's name as a button that chooses it, with what is said of it. */
function nodeButton(node) {
  const button = html('button', { type: 'button', class: 'name', text: node.name, 'data-pick': node.id });
  button.addEventListener('click', () => change({ chosen: node.id, text: '' }));
  return html('th', { scope: 'row' }, button, ...(node.annotation ? [html('span', { class: 'said', text: node.annotation })] : []));
}

function edgeTable(title, list, other) {
  if (!list.length) return [];
  const exact = list.some((edge) => isNumber(edge.exact));
  const largest = most(list.map((edge) => size(edge.weight)));
  const sum = list.reduce((total, edge) => total + edge.weight, 0);
  const head = [['node', null], ['', null], ['weight', 'number'], ...(exact ? [['exact', 'number']] : [])];
  const rows = list.map((edge) => () => html('tr', {},
    nodeButton(edge[other]), html('td', {}, barOf(edge.weight, largest)), html('td', { class: 'number', text: digits(edge.weight) }),
    ...(exact ? [html('td', { class: 'number', text: isNumber(edge.exact) ? digits(edge.exact) : '\u2013' })] : [])));
  return shortTable(`${title}: ${thousands(list.length)}, in all ${digits(sum)}`, head, rows);
}

/** What flows into a node, and how far it explains its effect. */
function account(node) {
  if (!isNumber(node.incoming)) return node.kind === 'metric' ? [] : [html('p', { class: 'term', text: 'Nothing lies before it.' })];
  const parts = [['from nodes of the circuit', node.incoming], ['from nodes left out', node.below], ['unexplained', node.unexplained]];
  const sum = parts.reduce((total, [, value]) => total + (value ?? 0), 0);
  const largest = most([sum, ...parts.map(([, value]) => size(value))].map(size));
  const off = Math.abs(sum - node.effect) > 0.01 * Math.max(size(node.effect), size(sum));
  const row = ([text, value], kind) => html('tr', kind ? { class: kind } : {},
    html('th', { scope: 'row', text }), html('td', {}, barOf(value, largest)), html('td', { class: 'number', text: digits(value) }));
  return [
    html('h4', { text: 'What flows in' }),
    html('table', { class: 'account' }, html('tbody', {}, ...parts.map((part) => row(part)), row([off ? 'first-order effect' : 'effect', sum], 'sum'))),
    ...(node.orphan ? [html('p', { class: 'term', text: 'An orphan: it has an effect, but no slope leads to it.' })] : []),
  ];
}

// tokens that are whole words hold no blank of their own
const BETWEEN = vocabulary.some((token) => token.startsWith('\u2423')) ? '' : ' ';

const heated = (token, heat, strongest) => {
  const chip = html(strongest ? 'mark' : 'span', { class: heat < 0 ? 'token negative' : 'token' }, html('bdi', { text: vocabulary[token].replaceAll('\u2423', ' ') }));
  chip.style.setProperty('--heat', `${(STRONGEST * Math.abs(heat) / 99).toFixed(0)}%`);
  return chip;
};

function contexts(node) {
  const found = featureOf(node);
  if (!found || !corpus) return [];
  const share = 100 * found.fires / (corpus.tokens || 1);
  const often = `On at ${share >= 0.1 || !share ? digits(share) : '< 0.1'} % of ${thousands(corpus.tokens)} tokens, in ${thousands(found.prompts)} of ${thousands(corpus.prompts)} prompts of ${corpus.source}.`;
  return [
    html('h4', { text: 'Where it is strongest' }), html('p', { class: 'term', text: found.contexts.length ? often : `Nowhere in ${corpus.source}.` }),
    html('ol', { class: 'contexts' }, ...found.contexts.map((one) => html('li', {},
      html('span', { class: 'number', text: digits(one.most), title: `prompt ${one.prompt}` }),
      html('p', { class: 'context' }, ...one.tokens.flatMap((token, place) => [heated(token, one.heat[place], place === one.strongest), BETWEEN]))))),
  ];
}

function nodePanel(node) {
  const close = html('button', { type: 'button', class: 'close', 'aria-label': 'back to the list', text: '\u00d7' });
  close.addEventListener('click', () => change({ chosen: null, read: null }));
  const isMetric = node.kind === 'metric';
  return [
    html('header', {}, html('h3', {}, html('code', { text: node.name })), close),
    ...(node.annotation ? [html('p', { class: 'annotation', text: node.annotation })] : []),
    html('p', { class: 'term', text: place(node) }),
    html('dl', { class: 'values' },
      html('div', {}, html('dt', { text: isMetric ? 'clean prompts' : 'effect' }), html('dd', { text: digits(node.effect) + spread(node) })),
      ...(isNumber(node.exact) ? [html('div', {}, html('dt', { text: 'exact, by intervention' }), html('dd', { text: digits(node.exact) }))] : [])),
    ...account(node), ...contexts(node),
    ...edgeTable('Edges in', node.into, 'source'), ...edgeTable('Edges out', node.out, 'target'),
  ];
}

function listPanel() {
  const found = state.text ? byEffect.filter(matches) : byEffect;
  const title = state.text ? `${thousands(found.length)} node${found.length === 1 ? '' : 's'} with \u201c${state.text}\u201d` : 'Strongest nodes';
  if (!found.length) return [html('h3', { text: title })];
  const rows = found.map((node) => () => html('tr', {},
    nodeButton(node), html('td', {}, barOf(node.effect, largestEffect)), html('td', { class: 'number', text: digits(node.effect) })));
  return [...shortTable(title, [['node', null], ['', null], ['effect', 'number']], rows)];
}

function drawPanel() {
  const id = told();
  panel.replaceChildren(...(id == null ? listPanel() : nodePanel(nodes[id])));
}
