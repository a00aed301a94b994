// The prompts: tokens as chips, with those that differ between clean and corrupted marked.

const FIRST_PAIRS = 5;
const MORE_PAIRS = 25;

/** A token with its line breaks and tabs drawn, so that they take room. */
const visible = (token) => token.replace(/\r?\n/g, '\u21b5').replace(/\t/g, '\u21e5');

function startPrompts() {
  const section = document.getElementById('prompts');
  const pairs = data.pairs ?? [];
  if (!pairs.length) {
    section.querySelector('#prompt-count').textContent = 'This result holds no prompts.';
    return;
  }
  let limit = FIRST_PAIRS;
  const list = section.querySelector('.pairs');
  const draw = () => {
    list.replaceChildren(...pairs.slice(0, limit).map(drawPair));
    const of = data.pairs_shown?.of ?? pairs.length;
    const held = of > pairs.length ? ` This page holds ${thousands(pairs.length)} of the task\u2019s ${thousands(of)} pairs.` : '';
    const marked = pairs.some((pair) => pair.corrupted) ? '; tokens that differ are underlined' : '';
    section.querySelector('#prompt-count').textContent = `Showing ${thousands(Math.min(limit, pairs.length))} of ${thousands(pairs.length)} prompt pairs.${held} Beside each prompt stands its ${metricName}${marked}.`;
    const rest = pairs.length - limit;
    document.getElementById('more-prompts').replaceChildren(...(rest > 0 ? [moreButton(Math.min(MORE_PAIRS, rest), () => { limit += MORE_PAIRS; draw(); })] : []));
  };
  draw();
}

function drawPair(pair) {
  const lines = [chipLine('clean', pair.clean, pair.corrupted, pair.clean_value)];
  if (pair.corrupted) lines.push(chipLine('corrupted', pair.corrupted, pair.clean, pair.corrupted_value));
  const answers = html('p', { class: 'answers' });
  for (const [word, tokens] of [['answer', pair.answer], ['wrong', pair.wrong]]) {
    if (!tokens?.length) continue;
    answers.append(html('span', { class: 'term', text: word }), ...tokens.map((token) => chip(token, false)));
  }
  if (pair.label) answers.append(html('span', { class: 'term', text: 'label' }), html('bdi', { text: pair.label }));
  return html('li', {}, ...lines, answers);
}

function chipLine(word, tokens, others, value) {
  const chips = tokens.map((token, place) => chip(token, others != null && token !== others[place], place));
  return html('div', { class: 'prompt' },
    html('span', { class: 'term', text: word }),
    html('span', { class: 'number', text: value === undefined ? '' : digits(value), title: `${metricName} of the ${word} prompt` }),
    html('p', { class: 'chips' }, ...chips));
}

function chip(token, differs, place) {
  return html(differs ? 'mark' : 'span', { class: 'chip', dir: 'auto', text: visible(token), title: place == null ? null : `position ${place}` });
}
