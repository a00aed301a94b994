// Everything known of the chosen cell: beside the map for the eye, in one sentence for the ear.

const CONVENTION = 'Position i reads the tokens up to and including i, and predicts token i + 1.';
const panel = document.getElementById('panel');

function numberText(value) {
  if (!isNumber(value)) return 'n/a';
  return Number.isInteger(value) ? trueMinus(thousands(value)) : digits(value);
}

/** What a token is at a position, besides being probable. */
function roles(token, position) {
  const { tokens, next, final } = prompt();
  return [[tokens, 'input'], [next, 'next'], [final, 'final']].filter(([list]) => list[position] === token).map(([, role]) => role);
}

function drawPanel() {
  const { row, position } = state;
  const { tokens, next, top, cost } = prompt();
  panel.replaceChildren(
    html('h3', {}, html('code', { text: rows[row].name }), ` at position ${thousands(position)}`),
    html('p', { class: 'term', text: rows[row].title }),
    html('dl', { class: 'reads' },
      html('div', {}, html('dt', { text: `reads token ${thousands(position)}` }), html('dd', {}, chip(tokens[position]))),
      html('div', {}, html('dt', { text: `next, token ${thousands(position + 1)}` }), html('dd', {}, chip(next[position])))),
    html('table', { class: 'top' }, html('caption', { text: 'predicts' }),
      html('tbody', {}, ...top[row][position].map((token, rank) => guess(token, cost[row][position][rank], position)))),
    html('dl', { class: 'values' }, ...statistics.map((one, number) => html('div', number === state.statistic ? { class: 'current' } : {},
      html('dt', { text: one.name, title: one.explain }), html('dd', { text: withUnit(one, row, position) })))),
    html('p', { class: 'term', text: CONVENTION }),
  );
}

const withUnit = (one, row, position) => {
  const value = valueAt(row, position, one.key);
  return `${numberText(value)}${isNumber(value) && one.unit ? ` ${one.unit}` : ''}`;
};

/** A guess as a row: the token, what else it is, its probability as a number and a bar. */
function guess(token, cost, position) {
  const bar = html('span', { class: 'share' });
  bar.style.setProperty('--share', cost == null ? '0' : Math.exp(-cost / 1000).toFixed(4));
  return html('tr', {},
    html('th', { scope: 'row' }, chip(token), ...roles(token, position).map((role) => html('span', { class: 'role', text: role }))),
    html('td', {}, bar), html('td', { class: 'number', text: percent(cost) }));
}

/** The cell in one sentence. */
function spoken() {
  const { row, position } = state;
  const { tokens, next, top, cost } = prompt();
  const guesses = top[row][position].slice(0, 3).map((token, rank) => `${word(token)} ${percent(cost[row][position][rank])}`);
  return `${rows[row].name}, position ${position}, reads ${word(tokens[position])}, next ${next[position] == null ? 'none' : word(next[position])}; predicts ${guesses.join(', ')}; ${statistic().name} ${withUnit(statistic(), row, position)}${state.pins.some((one) => one.row === row && one.position === position) ? '; pinned' : ''}`;
}

const announce = () => { document.getElementById('live').textContent = spoken(); };
