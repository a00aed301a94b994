// What the reader has chosen: a prompt, a statistic, a cell, pinned cells. The address keeps all
// but the cell, so that a link or a reload shows the same.

document.documentElement.classList.add('scripts');
const PINS = 4;
const { rows, statistics, prompts } = data;
const FINAL = rows.length - 1;
const state = { prompt: 0, statistic: 0, row: FINAL, position: 0, pins: [] };
const prompt = () => prompts[state.prompt];
const positions = () => prompt().tokens.length;
const statistic = () => statistics[state.statistic];
const valueAt = (row, position, key = statistic().key) => prompt().values[key]?.[row]?.[position] ?? null;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

const listeners = [];
/** Be told what has changed: the names in `state`. */
const on = (act) => listeners.push(act);

function change(changes) {
  Object.assign(state, changes);
  if ('prompt' in changes && !('pins' in changes)) state.pins = [];
  state.position = clamp(state.position, 0, positions() - 1);
  // Browsers stop pages that change the address with every move of the pointer.
  if ('prompt' in changes || 'statistic' in changes || 'pins' in changes) keep();
  listeners.forEach((act) => act(changes));
}

/** Pin a cell, or unpin it; one pin a position, the oldest gives way. */
function pin(row, position) {
  const same = state.pins.some((one) => one.row === row && one.position === position);
  const others = state.pins.filter((one) => one.position !== position);
  change({ pins: same ? others : [...others, { row, position, color: freeColor(others) }].slice(-PINS) });
}

function freeColor(pins) {
  const taken = pins.slice(1 - PINS).map(({ color }) => color);
  return [...Array(PINS).keys()].find((color) => !taken.includes(color));
}

function keep() {
  const parts = [`prompt=${state.prompt + 1}`, `statistic=${encodeURIComponent(statistic().key)}`];
  if (state.pins.length) parts.push(`pins=${state.pins.map((one) => `${one.position}.${encodeURIComponent(rows[one.row].name)}`).join('~')}`);
  // A frame without an address of its own may not change it.
  try { history.replaceState(null, '', `#${parts.join('&')}`); } catch { /* nothing is kept there */ }
}

/** What the address says, as far as the page has it, and a cell to begin with. */
function recalled() {
  const said = new URLSearchParams(location.hash.slice(1));
  const chosen = { prompt: Number(said.get('prompt')) - 1, statistic: statistics.findIndex(({ key }) => key === said.get('statistic')) };
  if (!prompts[chosen.prompt]) chosen.prompt = 0;
  if (chosen.statistic < 0) chosen.statistic = 0;
  const pins = [];
  for (const text of (said.get('pins') ?? '').split('~')) {
    const [, place, name] = text.match(/^(\d+)\.(.+)$/) ?? [];
    const position = Number(place);
    const row = rows.findIndex((one) => one.name === name);
    if (row < 0 || position >= prompts[chosen.prompt].tokens.length || pins.some((one) => one.position === position)) continue;
    pins.push({ row, position, color: pins.length });
  }
  const kept = pins.slice(0, PINS);
  const { row, position } = kept.at(-1) ?? { row: FINAL, position: Math.min(prompts[chosen.prompt].tokens.length - 1, 6) };
  return { ...chosen, pins: kept, row, position };
}
