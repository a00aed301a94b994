// Where everything stands, layers from bottom to top: by site (attention, MLP, residual side by
// side, one above the other inside a layer) or by position (a column a token).

const GAP = 7;
const LINE = 9;
const NARROW = 22;
const COLUMNS = ['attention', 'mixer', 'MLP', 'residual'];
const ruler = document.createElement('canvas').getContext('2d');
const style = getComputedStyle(document.documentElement);
const [mono, sans] = ['--mono', '--sans'].map((name) => style.getPropertyValue(name).trim());
const widths = new Map();

/** How wide a text is, in pixels; measured once at one size. */
function textWidth(text, font, family = mono) {
  const key = `${family} ${text}`;
  ruler.font = `100px ${family}`;
  if (!widths.has(key)) widths.set(key, ruler.measureText(text).width / 100);
  return widths.get(key) * font;
}

const cut = (text, length) => {
  const letters = [...text];
  return letters.length > length ? `${letters.slice(0, length - 1).join('')}\u2026` : text;
};

/** A node as a chip: its texts and its size, larger with its effect. */
function chipOf(node) {
  const share = node.kind === 'metric' ? 0.6 : Math.sqrt(size(node.effect) / largestEffect);
  const font = 10.5 + 5 * share;
  const bySite = state.layout === 'site';
  const name = inSite(node, bySite);
  const said = bySite && node.annotation ? cut(node.annotation, 20) : '';
  const pad = font * (node.kind === 'error' ? 0.85 : 0.62);
  const wide = textWidth(name, font) + (said ? 5 + textWidth(said, font * 0.86, sans) : 0);
  return { node, font, name, said, pad, width: Math.ceil(wide + 2 * pad), height: Math.round(font * 1.62) };
}

/** Chips in lines no wider than the room; each gets its place from the left and from the top. */
function wrapped(chips, room) {
  const lines = [];
  let line = null;
  for (const chip of chips) {
    if (!line || line.width + GAP + chip.width > room) lines.push(line = { chips: [], width: -GAP, height: 0 });
    line.chips.push(chip);
    line.width += GAP + chip.width;
    line.height = Math.max(line.height, chip.height);
  }
  const height = lines.reduce((sum, one) => sum + one.height + LINE, -LINE);
  return { lines, height, width: most(lines.map((one) => one.width)) };
}

/** Put lines into a box, in its middle. */
function settle({ lines, height }, left, top, room, tall) {
  const marks = [];
  let y = top + (tall - height) / 2;
  for (const line of lines) {
    let x = left + (room - line.width) / 2;
    for (const chip of line.chips) {
      marks.push({ ...chip, x: x + chip.width / 2, y: y + line.height / 2 });
      x += chip.width + GAP;
    }
    y += line.height + LINE;
  }
  return marks;
}

/** The sites that have nodes to show, from top to bottom, the metric first. */
function rowsOf(drawn) {
  const found = new Map();
  for (const node of drawn) {
    const key = node.site ?? sites.length;
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(node);
  }
  return [...found.keys()].sort((a, b) => b - a).map((key) => ({
    site: sites[key] ?? null, nodes: found.get(key).sort((a, b) => b.effect - a.effect),
  }));
}

function layout(drawn, room) {
  const rows = rowsOf(drawn);
  return state.layout === 'site' ? bySite(rows, room) : byPosition(rows, room);
}

const columnOf = (site) => site?.column ?? 'residual';

function bySite(rows, room) {
  const SIDE = 42;
  const used = COLUMNS.filter((name) => rows.some((row) => columnOf(row.site) === name));
  const chips = rows.map((row) => row.nodes.map(chipOf));
  const ofColumn = (measure) => used.map((name) => SIDE + GAP + most(rows.map((row, place) => (columnOf(row.site) === name ? measure(chips[place]) : 0))));
  const natural = ofColumn((some) => some.reduce((sum, chip) => sum + chip.width + GAP, 0));
  const least = ofColumn((some) => most(some.map((chip) => chip.width)));
  const wide = shares(natural, room, least);
  const lefts = wide.map((_, place) => wide.slice(0, place).reduce((sum, width) => sum + width, 0));
  const found = { width: lefts.at(-1) + wide.at(-1), marks: [], names: [], labels: [] };
  let y = 10;
  rows.forEach((row, place) => {
    const column = used.indexOf(columnOf(row.site));
    const lines = wrapped(chips[place], wide[column] - SIDE - GAP);
    const tall = lines.height + 16;
    found.marks.push(...settle(lines, lefts[column] + SIDE, y, wide[column] - SIDE - GAP, tall));
    if (row.site) found.labels.push({ text: row.site.label, x: lefts[column] + SIDE - 6, y: y + tall / 2 });
    name(found.names, row.site, y, tall);
    y += tall;
  });
  found.heads = used.map((text, place) => ({ text, left: lefts[place], width: wide[place] }));
  return { ...found, height: y + 8 };
}

/** Name a layer once: a row of the layer above it only makes its band taller. */
function name(names, site, y, tall) {
  const text = !site ? '' : site.layer == null ? 'input' : `layer ${site.layer}`;
  const last = names.at(-1);
  if (last && last.text === text && text) last.height += tall;
  else names.push({ text, top: y, height: tall });
}

/** Widths that fill the room: what each would take, more if there is more, less if need be. */
function shares(natural, room, least) {
  const sum = natural.reduce((total, width) => total + width, 0);
  if (sum <= room) return natural.map((width) => width + (room - sum) / natural.length);
  const rest = Math.max(0, room - least.reduce((total, width) => total + width, 0));
  const over = natural.map((width, place) => Math.sqrt(width - least[place]));
  const whole = over.reduce((total, width) => total + width, 0) || 1;
  return natural.map((_, place) => least[place] + rest * over[place] / whole);
}

function byPosition(rows, room) {
  const last = most(inner.map((node) => node.position ?? 0));
  const count = Math.max(prompt.length, last + 1);
  const at = (node) => Math.min(node.position ?? count - 1, count - 1);
  const cells = rows.map((row) => {
    const line = Array.from({ length: count }, () => []);
    for (const node of row.nodes) line[at(node)].push(chipOf(node));
    return line;
  });
  const sum = (some) => some.reduce((total, width) => total + width, 0);
  // cells as deep as it takes for all columns to fit, within reason
  const sized = (deep) => Array.from({ length: count }, (_, place) => most(cells.map((line) => {
    const widest = most(line[place].map((chip) => chip.width));
    return Math.ceil(line[place].length / deep) * (widest + GAP) + GAP;
  }).concat(NARROW)));
  const natural = [3, 4, 5, 6, 8].map(sized).reduce((best, other) => (sum(best) <= room ? best : other));
  const wide = natural.map((width) => width + Math.max(0, room - sum(natural)) / count);
  const lefts = wide.map((_, place) => sum(wide.slice(0, place)));
  const found = { width: sum(wide), marks: [], names: [], labels: [] };
  let y = 10;
  cells.forEach((line, number) => {
    const lines = line.map((chips, place) => wrapped(chips, wide[place] - GAP));
    const tall = most(lines.map((one) => one.height)) + 16;
    lines.forEach((one, place) => found.marks.push(...settle(one, lefts[place], y, wide[place], tall)));
    found.names.push({ text: rows[number].site?.label ?? '', top: y, height: tall });
    y += tall;
  });
  found.heads = wide.map((width, place) => {
    const text = prompt[place] ?? '';
    return { text, number: place, left: lefts[place], width, turned: textWidth(text, 12.5) + 6 > width };
  });
  return { ...found, height: y + 8 };
}
