// What the reader has chosen: a component, which value is shown, which scale. One choice, all views.

const choice = { id: null, value: 'score', scale: 'linear' };
const listeners = { id: [], value: [], scale: [] };
const on = (what, act) => listeners[what].push(act);

function choose(what, to) {
  if (choice[what] === to) return;
  choice[what] = to;
  for (const act of listeners[what]) act();
}

/** What the colors show, in words. */
const shownWord = () => ({ score: scoreWord, exact: 'exact effect', error: 'error, estimate \u2212 exact' })[choice.value];

/** Clicking the chosen component again lets go of it. */
const pick = (id) => choose('id', choice.id === id ? null : id);

// A signed root keeps lines through the origin straight, and zero at zero.
const scaled = (value) => (choice.scale === 'root' ? Math.sign(value) * Math.sqrt(Math.abs(value)) : value);
const strength = (value) => Math.min(1, Math.abs(scaled(value) / scaled(largest)));

const tip = document.getElementById('tip');

/** Show the tooltip for a component beside a box on the screen. */
function showTip(component, box) {
  tip.replaceChildren(
    html('b', { text: component.name }), html('span', { class: 'place', text: place(component) }),
    html('dl', {}, ...describe(component).map(([term, value]) =>
      html('div', {}, html('dt', { text: term }), html('dd', { text: value })))),
  );
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(box.right + 10, document.documentElement.clientWidth - width - 8);
  const top = box.top - height - 8;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${top < 8 ? Math.min(box.bottom + 10, innerHeight - height - 8) : top}px`;
}

const hideTip = () => { tip.hidden = true; };

/** The bar at the foot of the window: the chosen component in numbers, also for touch screens. */
function startChosen() {
  const bar = document.getElementById('chosen');
  const [words, clear] = bar.children;
  clear.addEventListener('click', () => choose('id', null));
  on('id', () => {
    bar.hidden = choice.id == null;
    if (bar.hidden) return words.replaceChildren();
    const component = components[choice.id];
    words.replaceChildren(
      html('b', { text: component.name }), html('span', { class: 'place', text: place(component) }),
      ...describe(component).map(([term, value]) =>
        html('span', { class: 'pair' }, html('i', { text: term }), ` ${value}`)),
    );
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    if (tip.hidden) choose('id', null);
    else hideTip();
  });
  addEventListener('scroll', hideTip, { passive: true });
}

/** A row of radio buttons that sets one choice. */
function radios(what, legend, options) {
  const group = html('fieldset', {}, html('legend', { text: legend }));
  for (const [value, label] of options) {
    const input = html('input', { type: 'radio', name: what, value, id: `${what}-${value}`, checked: choice[what] === value });
    input.addEventListener('change', () => choose(what, value));
    group.append(input, html('label', { for: input.id, text: label }));
  }
  return group;
}

function startToolbar() {
  const toolbar = document.getElementById('toolbar');
  if (audited) toolbar.append(radios('value', 'Color shows', [['score', scoreWord], ['exact', 'exact'], ['error', 'error']]));
  toolbar.append(radios('scale', 'Scale', [['linear', 'linear'], ['root', 'root']]));
}

/** The step of an arrow key as [across, down], or null for another key. */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
