// The data, and how its numbers and names are written. Text reaches the page through textContent.

const data = JSON.parse(document.getElementById('data').textContent);
// In the order in which kinds are shown.
const PLURAL = {
  token: 'tokens', head: 'heads', query: 'queries', key: 'keys', value: 'values',
  attention: 'attention', mixer: 'mixers', channel: 'channels', ssm_head: 'SSM heads', ssm: 'SSM', conv: 'conv',
  mlp: 'MLPs', neuron: 'neurons', residual: 'residual',
};
const KINDS = Object.keys(PLURAL);
const plural = (kind) => PLURAL[kind] ?? kind;
const kindOrder = (kind) => (KINDS.indexOf(kind) + KINDS.length + 1) % (KINDS.length + 1);
const isNumber = (value) => typeof value === 'number';
const thousands = (count) => count.toLocaleString('en-US');

const components = unpack(data.components);
const metricName = data.metric.name ?? 'metric';
const audited = components.some((component) => component.checked);
const isExactRun = /^exact\b/i.test(data.estimator);
const scoreWord = isExactRun ? 'exact score' : 'estimate';
const largest = furthest([...spread('score'), ...spread('exact')]) || 1;

/** One object a component, from columns; `rank` 1 is the largest |score|. */
function unpack(columns) {
  const keys = Object.keys(columns);
  const rows = columns.name.map((_, id) => {
    const row = Object.fromEntries(keys.map((key) => [key, columns[key][id]]));
    row.id = id;
    row.error = isNumber(row.score) && isNumber(row.exact) ? row.score - row.exact : null;
    row.base = row.position == null ? row.name : row.name.replace(/@-?\d+$/, '');
    return row;
  });
  const strength = (row) => (isNumber(row.score) ? Math.abs(row.score) : -1);
  [...rows].sort((a, b) => strength(b) - strength(a)).forEach((row, place) => { row.rank = place + 1; });
  return rows;
}

/** The lowest and highest of some values and zero. */
function ends(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [0, 0]);
}

/** The largest size; a fold, because a call cannot take a hundred thousand arguments. */
function furthest(values) {
  return values.filter(isNumber).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

function spread(key) {
  return components.map((component) => component[key]).filter(isNumber);
}

const trueMinus = (text) => text.replace('-', '\u2212');

/** Three digits, for one number on its own. */
function digits(value) {
  if (!isNumber(value)) return 'n/a';
  if (value === 0) return '0';
  const size = Math.floor(Math.log10(Math.abs(value)));
  const text = size < -4 || size > 5 ? value.toExponential(2) : value.toFixed(Math.max(0, 2 - size));
  return trueMinus(text);
}

/** A writer for a column: the same number of decimals for all, `count` digits for the largest. */
function columnWriter(values, count) {
  const size = Math.floor(Math.log10(furthest(values) || 1e-300));
  if (size < -5 || size > 6) return (value) => (isNumber(value) ? trueMinus(value.toExponential(count - 1)) : 'n/a');
  const decimals = Math.min(8, Math.max(0, count - 1 - size));
  const zero = (0).toFixed(decimals);
  return (value) => {
    if (!isNumber(value)) return 'n/a';
    const text = value.toFixed(decimals);
    return text === `-${zero}` ? zero : trueMinus(text);
  };
}

/** The exact effect, else its error bar, else `absent`. */
function exactText(component, write, absent) {
  if (component.checked) return write(component.exact);
  return isNumber(component.low) ? `[${write(component.low)}, ${write(component.high)}]` : absent;
}

/** Where a component is, in words. */
function place(component) {
  const kind = component.kind.replace('_', ' ').replace(/mlp|ssm/, (letters) => letters.toUpperCase());
  const words = [component.index != null && component.kind !== 'mlp' ? `${kind} ${component.index}` : kind];
  if (component.layer != null) words.push(`layer ${component.layer}`);
  if (component.position != null) words.push(`position ${component.position}`);
  return words.join(', ');
}

/** What is known of a component, as [term, value] pairs: tooltip, chosen bar and labels share it. */
function describe(component) {
  const lines = [[scoreWord, digits(component.score) + (isNumber(component.spread) ? ` (spread ${digits(component.spread)})` : '')]];
  if (audited) lines.push(['exact', exactText(component, digits, 'not checked')]);
  if (component.checked) lines.push(['error', digits(component.error)]);
  if (isNumber(component.size)) lines.push(['size of change', digits(component.size)]);
  if (component.flags.length) lines.push(['flags', component.flags.join('; ')]);
  return lines;
}

const spoken = (component) =>
  `${component.name}, ${describe(component).map(([term, value]) => `${term} ${value}`).join(', ')}`;

/** An HTML element. Attributes by name; `text` becomes its textContent. */
function html(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

// The SVG namespace is read off an element, so that the page holds no address at all.
const SVG = document.getElementById('svg').namespaceURI;

/** An SVG element, as `html`. */
function svg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

function dress(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value == null || value === false) continue;
    if (name === 'text') node.textContent = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children);
  return node;
}
