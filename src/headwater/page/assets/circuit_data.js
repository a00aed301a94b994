// The circuit as objects: nodes with the edges into and out of them. The metric is the last node.

document.documentElement.classList.add('scripts');
const { sites, prompt, features, corpus, vocabulary } = data;
const METRIC = data.nodes.name.length;

const nodes = data.nodes.name.map((name, id) => {
  const node = { id, into: [], out: [] };
  for (const [key, column] of Object.entries(data.nodes)) node[key] = column[id];
  return node;
});
nodes.push({
  id: METRIC, name: data.metric, kind: 'metric', site: null, index: null, position: null, effect: data.clean,
  annotation: '', orphan: 0, into: [], out: [],
});

const edges = data.edges.weight.map((weight, id) => {
  const edge = {
    id, weight, source: nodes[data.edges.source[id]], target: nodes[data.edges.target[id]],
    exact: data.edges.exact[id] ?? null,
  };
  edge.source.out.push(edge);
  edge.target.into.push(edge);
  return edge;
});

const size = (value) => (isNumber(value) ? Math.abs(value) : 0);
// folds, because a call cannot take a hundred thousand arguments
const most = (values) => values.reduce((best, value) => Math.max(best, value), 0);
const inner = nodes.slice(0, METRIC);
const byEffect = [...inner].sort((a, b) => size(b.effect) - size(a.effect));
const largestEffect = most(inner.map((node) => size(node.effect))) || 1;
const largestWeight = most(edges.map((edge) => size(edge.weight))) || 1;
const positioned = inner.some((node) => node.position != null);

/** How much of a color the strongest has, in percent: text on it can be read in light and dark. */
const STRONGEST = 80;

const base = (name) => name.split('@')[0];
const featureOf = (node) => (node.kind === 'feature' ? features[base(node.name)] : undefined);
const siteOf = (node) => (node.site == null ? null : sites[node.site]);

/** A node's name inside its site: `f77`, `error`, of a whole site its own; with a position if so asked. */
function inSite(node, placed) {
  if (node.kind === 'metric') return node.name;
  const name = { feature: `f${node.index}`, error: 'error' }[node.kind] ?? siteOf(node).label;
  return placed && node.position != null ? `${name}@${node.position}` : name;
}

const KIND = { feature: 'feature', error: 'what the features leave out', site: 'whole site', metric: 'metric' };

/** Where a node is, in words. */
function place(node) {
  const site = siteOf(node);
  if (!site) return 'mean over the clean prompts';
  const words = [node.kind === 'feature' ? `feature ${node.index} of ${site.label}` : `${KIND[node.kind]}, ${site.label}`];
  words.push(site.layer == null ? 'input of layer 0' : `${site.column}, layer ${site.layer}`);
  if (node.position != null) words.push(`position ${node.position}${prompt[node.position] == null ? '' : ` (${prompt[node.position]})`}`);
  return words.join('; ');
}

const spread = (node) => (isNumber(node.se) ? ` \u00b1 ${digits(node.se)}` : '');

const spoken = (node) => [
  node.name, node.annotation, node.kind === 'feature' ? '' : KIND[node.kind],
  `${node.kind === 'metric' ? 'value' : 'effect'} ${digits(node.effect)}`, `${node.into.length} edges in, ${node.out.length} out`,
].filter(Boolean).join(', ');
