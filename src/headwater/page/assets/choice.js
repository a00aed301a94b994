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

const named = (component) => [html('b', { text: component.name }), html('span', { class: 'place', text: place(component) })];
const showTip = (component, box) => placeTip(box, named(component), describe(component));

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
      ...named(component),
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

function startToolbar() {
  const toolbar = document.getElementById('toolbar');
  if (audited) toolbar.append(radios('value', 'Color shows', [['score', scoreWord], ['exact', 'exact'], ['error', 'error']], choose));
  toolbar.append(radios('scale', 'Scale', [['linear', 'linear'], ['root', 'root']], choose));
}
