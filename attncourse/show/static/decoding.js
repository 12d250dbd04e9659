// Calls of a decoder: what each computes, again or for the first time, and what it stores.
attncourse.piece("decoding", (root, data) => {
  const { slider, choices } = attncourse;
  const [cell, left, top] = data.size;
  const at = { way: data.start[0], call: data.start[1] };
  const pairs = (first, end) => (end * (end + 1) - first * (first + 1)) / 2;
  const square = (x, y, gap) => {
    const side = cell - 2 * gap;
    return `M${x + gap} ${y + gap}h${side}v${side}h-${side}z`;
  };

  function draw(calls) {
    const before = at.call ? calls[at.call - 1][1] : 0;
    const [first, end, kept] = calls[at.call];
    const paths = { old: "", now: "", again: "", kept: "" };
    const side = cell - 8;
    for (let i = 0; i < end; i++) {
      for (let j = 0; j <= i; j++) {
        const x = left + cell * j;
        const y = top + cell * i;
        if (i >= first) paths.now += square(x, y, 1);
        else paths.old += square(x, y, 5);
        if (i >= first && i < before) paths.again += `M${x + 4} ${y + 4}l${side} ${side}m0 -${side}l-${side} ${side}`;
      }
    }
    for (let j = 0; j < kept; j++) paths.kept += square(left + cell * j, top + cell * data.tokens + 30, 1);
    for (const [name, d] of Object.entries(paths)) root.querySelector(`.ac-${name}`).setAttribute("d", d);
  }

  function show() {
    const { name, calls } = data.ways[at.way];
    draw(calls);
    const [first, end, kept] = calls[at.call];
    const sum = (count) => calls.slice(0, at.call + 1).reduce((total, call) => total + count(call), 0);
    const projected = sum((call) => call[1] - call[0]);
    const scores = sum((call) => pairs(call[0], call[1]));
    const tokens = end - first === 1 ? "1 token" : `${end - first} tokens`;
    root.querySelector(".ac-live").textContent =
      `${name}, call ${at.call + 1} of ${calls.length}: ${tokens} projected, ${pairs(first, end)} scores. ` +
      `So far ${projected} projected, ${scores} scores, ${scores - pairs(0, end)} of them computed again. ` +
      `Stored: ${kept} of ${end} tokens.`;
  }

  // A slider for each way, since they take different numbers of calls; changing the way keeps the token.
  const sliders = data.ways.map(({ calls }) => {
    const control = slider("Call", calls.map((call, i) => `${i + 1} of ${calls.length}`), (i) => {
      at.call = i;
      show();
    });
    return control;
  });
  const ways = choices("Way to decode", data.ways.map((way) => way.name), "ac-chips", (i) => {
    const end = data.ways[at.way].calls[at.call][1];
    at.way = i;
    sliders.forEach(({ node }, n) => (node.hidden = n !== i));
    sliders[i].choose(data.ways[i].calls.findIndex((call) => call[1] >= end));
  });
  root.querySelector(".ac-controls").append(ways.node, ...sliders.map(({ node }) => node));
  ways.choose(at.way);
});
