// Tokens are numbers into one vocabulary, whose texts come with signs for what cannot be seen.

const SPACE = '\u2423';
const word = (token) => (token == null ? '\u2013' : data.vocabulary[token]);

/** A token's text in three: signs for spaces before it, itself, signs for spaces after it. */
function split(token) {
  const text = word(token);
  const [before] = text.match(/^\u2423*/);
  const [after] = text.slice(before.length).match(/\u2423*$/);
  return [before, text.slice(before.length, text.length - after.length), after];
}

/** A token as a chip; signs for spaces are faint. */
function chip(token, kind = 'span') {
  if (token == null) return html('span', { class: 'term', text: 'none' });
  const [before, inner, after] = split(token);
  const faint = (text) => (text ? [html('i', { text })] : []);
  return html(kind, { class: 'chip' }, ...faint(before), html('bdi', { text: inner }), ...faint(after));
}

/** A probability in words, from minus its natural logarithm in thousandths. */
function percent(cost) {
  if (cost == null) return '0 %';
  const share = 100 * Math.exp(-cost / 1000);
  if (share >= 99.95) return '100 %';
  return `${share >= 1e-3 ? digits(share) : tiny(share)} %`;
}

function tiny(value) {
  const [digit, power] = value.toExponential(0).split('e-');
  return `${digit}e\u2212${power}`;
}

/** As much of a text as fits into a width, with an ellipsis if that is not all; widths are kept. */
function fitter(context) {
  const known = new Map();
  return (text, room) => {
    const key = `${context.font} ${Math.floor(room)} ${text}`;
    if (!known.has(key)) known.set(key, fit(context, text, room));
    return known.get(key);
  };
}

function fit(context, text, room) {
  const width = context.measureText(text).width;
  if (width <= room) return { text, width };
  // By whole letters: half of a pair of surrogates is no letter.
  const letters = [...text.slice(0, 64)];
  while (letters.length && context.measureText(`${letters.join('')}\u2026`).width > room) letters.pop();
  const shown = `${letters.join('')}\u2026`;
  return { text: shown, width: context.measureText(shown).width };
}
