// The components, and how their numbers and names are written.

// In the order in which kinds are shown.
const PLURAL = {
  token: 'tokens', head: 'heads', query: 'queries', key: 'keys', value: 'values',
  attention: 'attention', mixer: 'mixers', channel: 'channels', ssm_head: 'SSM heads', ssm: 'SSM', conv: 'conv',
  mlp: 'MLPs', neuron: 'neurons', residual: 'residual', feature: 'features', error: 'errors',
};
const KINDS = Object.keys(PLURAL);
const plural = (kind) => PLURAL[kind] ?? kind;
// So many of them that grids leave them out: strips show them, a dot each (`strip.js`, which the
// page has only if it has any of these).
const inStrip = (component) => /neuron|feature|error/.test(component.kind);
const kindOrder = (kind) => (KINDS.indexOf(kind) + KINDS.length + 1) % (KINDS.length + 1);

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
  return components.map((c) => c[key]).filter(isNumber);
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
