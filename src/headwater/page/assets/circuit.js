// The controls, and what follows what.

// Until the reader moves it, the edges' threshold follows the nodes'.
let moved = false;

function slider(name, text, scale, tell) {
  const input = html('input', { type: 'range', id: name, min: 0, max: STEPS, value: state[name] });
  const said = html('output', { for: name });
  const say = () => {
    input.value = state[name];
    said.textContent = tell(scale.at(state[name]));
    input.setAttribute('aria-valuetext', said.textContent);
  };
  input.addEventListener('input', () => {
    if (name === 'edges') moved = true;
    change({ [name]: Number(input.value) });
  });
  say();
  return { node: html('div', { class: 'choice' }, html('label', { for: name, text }), input, said), say };
}

const atLeast = (value) => (value ? `\u2265 ${digits(value)}` : 'all');
const sliders = [
  slider('nodes', 'Nodes', nodeScale, atLeast),
  slider('edges', 'Edges', edgeScale, atLeast),
];

function controls() {
  const bar = document.getElementById('toolbar');
  if (positioned) bar.append(radios('layout', 'Columns', [['position', 'tokens'], ['site', 'sites']], (_, layout) => change({ layout })));
  bar.append(...sliders.map(({ node }) => node));
  const search = html('input', { type: 'search', id: 'text', placeholder: inner.some((node) => node.annotation) ? 'name or annotation' : 'm1.f5', autocomplete: 'off', size: 16 });
  search.addEventListener('input', () => change({ text: search.value.trim(), chosen: null, read: null }));
  search.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || !state.text) return;
    const [first] = byEffect.filter(matches);
    if (first) change({ chosen: first.id });
  });
  bar.append(html('div', { class: 'choice' }, html('label', { for: 'text', text: 'Find' }), search));
}

function count() {
  const { of_nodes: ofNodes, of_edges: ofEdges } = data.shown;
  const shown = inner.filter(isShown).length;
  const words = [`${thousands(shown)} of ${thousands(ofNodes)} nodes, ${thousands(drawnEdges)} of ${thousands(ofEdges)} edges drawn.`];
  if (shown < METRIC || drawnEdges < edges.length) words.push('Weaker ones are hidden: the sliders bring them back.');
  const held = [[METRIC, ofNodes, 'nodes'], [edges.length, ofEdges, 'edges']].filter(([some, all]) => some < all).map(([some, , what]) => `${thousands(some)} ${what}`);
  if (held.length) words.push(`This page holds the strongest ${held.join(' and ')}.`);
  document.getElementById('count').textContent = words.join(' ');
}

/** What shapes, colors and widths mean; only those that occur. */
function drawKey() {
  const sample = (kind, extra = '') => {
    const icon = svg('svg', { viewBox: '-15 -8 30 16', class: 'sample', 'aria-hidden': 'true' });
    icon.append(svg('g', { class: `node ${kind} ${extra}` }, ...SHAPES[kind](24, 13)));
    return icon;
  };
  const stroke = (sign) => {
    const icon = svg('svg', { viewBox: '-15 -8 30 16', class: 'sample', 'aria-hidden': 'true' });
    icon.append(svg('path', { d: 'M-12 0H12', class: `edge ${sign}`, 'stroke-width': 3 }));
    return icon;
  };
  const item = (icon, text) => html('span', { class: 'item' }, icon, text);
  const has = (kind) => inner.some((node) => node.kind === kind);
  const items = [['feature', 'feature'], ['error', 'error: what features leave out'], ['site', 'whole site']].filter(([kind]) => has(kind)).map(([kind, text]) => item(sample(kind, 'plain-sample'), text));
  if (inner.some((node) => node.orphan)) {
    const icon = sample('feature', 'plain-sample');
    icon.append(svg('circle', { cy: 7.5, r: 2.2, class: 'lost' }));
    items.push(item(icon, 'orphan: nothing flows in'));
  }
  items.push(item(stroke('positive'), 'supports'), item(stroke('negative'), 'opposes'));
  document.getElementById('key').replaceChildren(...items, html('p', { class: 'caption', text: `A chip is larger and stronger in color the larger the node\u2019s effect on ${data.metric}; an edge is wider the more of the target\u2019s effect comes directly from the source.${state.layout === 'position' ? ' Tokens are those of the first clean prompt.' : ''}` }));
}

on((changed) => {
  const has = (...names) => names.some((one) => changed.includes(one));
  const search = document.getElementById('text');
  if (search.value.trim() !== state.text) search.value = state.text;
  if (has('layout')) document.getElementById(`layout-${state.layout}`).checked = true;
  if (has('nodes') && !moved) state.edges = firstEdges();
  sliders.forEach(({ say }) => say());
  if (has('layout') || !isDrawn()) drawGraph();
  else if (has('nodes', 'edges')) drawEdges();
  else drawFocus();
  if (has('layout')) drawKey();
  if (has('chosen', 'read', 'text')) drawPanel();
  count();
});

Object.assign(state, recalled());
controls();
if (positioned) document.getElementById(`layout-${state.layout}`).checked = true;
startGraph();
drawKey();
let wide = 0;
new ResizeObserver(() => {
  if (Math.abs(frame.clientWidth - wide) < 1) return;
  const first = !wide;
  wide = frame.clientWidth;
  drawGraph();
  count();
  // where there is no room for all, the beginning is where the metric is
  if (first) frame.scrollLeft = marks.get(METRIC).x - frame.clientWidth / 2;
}).observe(frame);
drawPanel();
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  hideTip();
  change({ chosen: null, pointed: null, read: null, text: '' });
});
addEventListener('hashchange', () => change(recalled()));
addEventListener('scroll', hideTip, { passive: true });
frame.addEventListener('scroll', hideTip, { passive: true });
