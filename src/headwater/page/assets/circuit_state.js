// What the reader has chosen: a node, a layout, two thresholds, a text to look for. A node that was
// pointed at stays in the panel until another is.

const NODES = 80;
const EDGES = 300;
const STEPS = 100;
const state = {
  chosen: null, pointed: null, read: null, layout: positioned ? 'position' : 'site', text: '',
  nodes: null, edges: null,
};

const listeners = [];
/** Be told what has changed: the names in `state`. */
const on = (act) => listeners.push(act);

function change(changes) {
  const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
  if (!changed.length) return;
  Object.assign(state, changes);
  if (changed.includes('chosen') || changed.includes('layout')) keep();
  listeners.forEach((act) => act(changed));
}

/** A scale of sizes in steps: 0 is all of them, the last the largest alone. */
function scaleOf(sizes) {
  const sorted = Float64Array.from(sizes.filter((value) => value > 0)).sort();
  const [low, high] = [sorted[0] ?? 1, sorted[sorted.length - 1] ?? 1];
  const at = (step) => (step <= 0 ? 0 : step >= STEPS ? high : low * (high / low) ** (step / STEPS));
  // a size that rounding put a hair under its own threshold belongs to it
  const passes = (value, step) => value >= at(step) * (1 - 1e-12);
  const count = (step) => sizes.reduce((sum, value) => sum + passes(value, step), 0);
  const first = (limit) => {
    let step = 0;
    while (step < STEPS && count(step) > limit) step += 1;
    return step;
  };
  return { at, passes, count, first };
}

const nodeSizes = inner.map((node) => size(node.effect));
const nodeScale = scaleOf(nodeSizes);
state.nodes = nodeScale.first(NODES);

const isShown = (node) => node.id === METRIC || node.id === state.chosen || nodeScale.passes(size(node.effect), state.nodes);
const edgeScale = scaleOf(edges.map((edge) => size(edge.weight)));
const between = (edge) => isShown(edge.source) && isShown(edge.target);
const isStrong = (edge) => edgeScale.passes(size(edge.weight), state.edges);

/** The first step at which no more edges are drawn than the eye can follow. */
function firstEdges() {
  const able = edges.filter(between);
  let step = 0;
  while (step < STEPS && able.length > EDGES && edgeScale.passes(size(able[EDGES].weight), step)) step += 1;
  return step;
}
state.edges = firstEdges();

const matches = (node) => {
  const text = state.text.toLowerCase();
  return node.name.toLowerCase().includes(text) || node.annotation.toLowerCase().includes(text);
};

/** Click on the chosen node again to let go of it. */
const pick = (id) => change({ chosen: state.chosen === id ? null : id });
const focused = () => state.chosen ?? state.pointed;
const told = () => state.chosen ?? state.read;

function keep() {
  const parts = [];
  if (state.chosen != null) parts.push(`node=${encodeURIComponent(nodes[state.chosen].name)}`);
  if (positioned) parts.push(`layout=${state.layout}`);
  // A frame without an address of its own may not change it.
  try { history.replaceState(null, '', `#${parts.join('&')}`); } catch { /* nothing is kept there */ }
}

/** What the address says, as far as the page has it. */
function recalled() {
  const said = new URLSearchParams(location.hash.slice(1));
  const name = said.get('node');
  const found = name == null ? -1 : nodes.findIndex((node) => node.name === name);
  const layout = positioned && ['position', 'site'].includes(said.get('layout')) ? said.get('layout') : state.layout;
  return { chosen: found < 0 ? null : found, layout };
}
