// Color of a number: from the 1st to the 99th percentile of all prompts, so that prompts compare.

const RAMPS = {
  light: { one: ['#f6f2e8', '#cfe3d8', '#80c0c5', '#3784ae', '#1d3f7a'], two: ['#a84e0c', '#e8a266', '#f1eee8', '#8bb9e2', '#1f64a8'] },
  dark: { one: ['#202329', '#1f4058', '#256b86', '#45a0ae', '#bbe5cb'], two: ['#f0a45e', '#9a551d', '#26282d', '#2f6ba6', '#84bcf2'] },
};
const darkness = matchMedia('(prefers-color-scheme: dark)');
const scales = new Map();

/** How a statistic's numbers become shares of the ramp, and back. */
function scaleOf({ key, scale }) {
  if (!scales.has(key)) scales.set(key, measure(key, scale));
  return scales.get(key);
}

function measure(key, scale) {
  const log = scale === 'log';
  const all = prompts.flatMap(({ values }) => (values[key] ?? []).flat()).filter((value) => isNumber(value) && (!log || value > 0));
  const sorted = Float64Array.from(all).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))] ?? (log ? 1 : 0);
  let [low, high] = [at(0.01), at(0.99)];
  if (scale === 'diverging') {
    high = Math.max(Math.abs(low), Math.abs(high)) || 1;
    low = -high;
  }
  if (low === high) high = log ? low * 10 : low + 1;
  const [put, take] = log ? [Math.log, Math.exp] : [Number, Number];
  const [from, to] = [put(low), put(high)];
  return {
    low, high, two: scale === 'diverging', log,
    below: sorted[0] < low, above: sorted[sorted.length - 1] > high,
    share: (value) => (log && value <= 0 ? 0 : clamp((put(value) - from) / (to - from), 0, 1)),
    value: (share) => take(from + share * (to - from)),
  };
}

const ramp = (two) => RAMPS[darkness.matches ? 'dark' : 'light'][two ? 'two' : 'one'];
const channels = (hex) => [1, 3, 5].map((from) => parseInt(hex.slice(from, from + 2), 16));

/** The color of a share, as red, green and blue. */
function mix(stops, share) {
  const place = Math.min(share * (stops.length - 1), stops.length - 1 - 1e-9);
  const [from, to] = [channels(stops[Math.floor(place)]), channels(stops[Math.floor(place) + 1])];
  return from.map((value, channel) => Math.round(value + (place % 1) * (to[channel] - value)));
}

/** Black or white, whichever reads better on a color. */
function onColor(color) {
  const [red, green, blue] = color.map((value) => ((value / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? '#000000' : '#ffffff';
}

/** What the colors mean, with the chosen cell's number marked on the bar. */
function drawLegend() {
  const { name, unit } = statistic();
  const scale = scaleOf(statistic());
  const bar = html('div', { class: 'ramp' });
  bar.style.background = `linear-gradient(to right, ${ramp(scale.two).join(', ')})`;
  const value = valueAt(state.row, state.position);
  if (isNumber(value)) {
    const mark = html('span', { class: 'at' });
    mark.style.left = `${100 * scale.share(value)}%`;
    bar.append(mark);
  }
  const narrow = Math.max(Math.abs(scale.low), Math.abs(scale.high)) / (scale.high - scale.low);
  const most = scale.log ? 2 : 2 + Math.max(0, Math.floor(Math.log10(narrow)));
  const shares = [0, 0.25, 0.5, 0.75, 1];
  const signs = [scale.below ? '\u2264\u2009' : '', '', '', '', scale.above ? '\u2265\u2009' : ''];
  document.getElementById('legend').replaceChildren(
    html('span', { class: 'title', text: `${name}${unit ? `, ${unit}` : ''}${scale.log ? ', logarithmic' : ''}` }), bar,
    html('div', { class: 'ticks' }, ...shares.map((share, place) => html('span', { text: signs[place] + legendText(scale.value(share), most) }))),
    html('span', { class: 'words', text: 'Colors from the 1st to the 99th percentile of all cells; hatched: no number.' }),
  );
}

/** A round number: no more digits than tell it from its neighbors. */
function legendText(value, most = 2) {
  const rounded = Number(value.toPrecision(most));
  const size = Math.abs(rounded);
  if (size >= 1000 && size < 1e6) return trueMinus(thousands(rounded));
  if (size && (size < 1e-3 || size >= 1e6)) return rounded.toExponential().replace('e+', 'e').replaceAll('-', '\u2212');
  return trueMinus(String(rounded));
}
