// What every page's script is made of: its data, elements, numbers as text, a tooltip, a switch.
// Text reaches the page through textContent.

const data = JSON.parse(document.getElementById('data').textContent);
const isNumber = (value) => typeof value === 'number';
const thousands = (count) => count.toLocaleString('en-US');
const trueMinus = (text) => text.replace('-', '\u2212');

/** Three digits, for one number on its own. */
function digits(value) {
  if (!isNumber(value)) return 'n/a';
  if (value === 0) return '0';
  const size = Math.floor(Math.log10(Math.abs(value)));
  const text = size < -4 || size > 5 ? value.toExponential(2) : value.toFixed(Math.max(0, 2 - size));
  return trueMinus(text);
}

/** An HTML element. Attributes by name; `text` becomes its textContent. */
const html = (tag, attributes = {}, ...children) => dress(document.createElement(tag), attributes, children);

// The SVG namespace is read off an element, so that the page holds no address at all.
const SVG = document.getElementById('svg').namespaceURI;

/** An SVG element, as `html`. */
const svg = (tag, attributes = {}, ...children) => dress(document.createElementNS(SVG, tag), attributes, children);

function dress(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value == null || value === false) continue;
    if (name === 'text') node.textContent = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children);
  return node;
}

const line = (x1, y1, x2, y2, name) => svg('line', { x1, y1, x2, y2, class: name });
const label = (x, y, text, anchor, name) => svg('text', { x, y, 'text-anchor': anchor, class: name, text });

/** A row of radio buttons, the first of them chosen; `act` is told the name and the new value. */
function radios(name, legend, options, act) {
  const group = html('fieldset', {}, html('legend', { text: legend }));
  options.forEach(([value, label], place) => {
    const input = html('input', { type: 'radio', name, value, id: `${name}-${value}`, checked: !place });
    input.addEventListener('change', () => act(name, value));
    group.append(input, html('label', { for: input.id, text: label }));
  });
  return group;
}

/** The step of an arrow key as [across, down], or null for another key. */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const tip = document.getElementById('tip');

/** Show the tooltip beside a box on the screen: a title, and pairs of term and value. */
function placeTip(box, title, pairs) {
  tip.replaceChildren(...title, html('dl', {}, ...pairs.map(([term, value]) =>
    html('div', {}, html('dt', { text: term }), html('dd', { text: value })))));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(box.right + 10, document.documentElement.clientWidth - width - 8);
  const top = box.top - height - 8;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${top < 8 ? Math.min(box.bottom + 10, innerHeight - height - 8) : top}px`;
}

const hideTip = () => { tip.hidden = true; };
