// Latent attention beside MHA, GQA and MQA: sizes to move, and what follows from them.
attncourse.piece("latent", (root, data) => {
  const at = { ...data.start };
  const cells = [...root.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const whole = (n) => n.toLocaleString("en-US");
  const tenths = (x) =>
    (Math.floor(10 * x + 0.5) / 10).toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  let ready = false;

  function size(name, width, height) {
    const node = root.querySelector(`.ac-${name}`);
    node.setAttribute("width", width);
    node.setAttribute("height", height);
    return node;
  }

  function show() {
    if (!ready) return;
    const { H, C, R, N, V } = at;
    const costs = [
      [2 * H * V, 4 * H * V],
      [2 * data.G * V, 4 * H * V],
      [2 * V, 4 * H * V],
      [C + R, 2 * H * (C * (N + V) + N + R + V)],
      [C + R, 2 * H * (2 * C + R)],
    ];
    costs.forEach(([numbers, flop], i) => {
      const texts = [whole(numbers), whole(2 * numbers), whole(flop), tenths(flop / (2 * numbers))];
      texts.forEach((text, j) => (cells[i][j].textContent = text));
    });
    const { scale, left } = data;
    size("mha", 2 * V * scale, H);
    size("gqa", 2 * V * scale, data.G);
    size("mqa", 2 * V * scale, 1);
    size("vector", C * scale, 1);
    size("rope", R * scale, 1).setAttribute("x", left + C * scale);
    const more = 2 * C - N - V;
    const most = Math.ceil((C * (N + V)) / more) - 1;
    const until = more > 0 ? `up to ${whole(most)} queries at a time` : "for any number of queries at a time";
    root.querySelector(".ac-live").textContent =
      `A token takes ${whole(C + R)} numbers: MHA has ${tenths((2 * H * V) / (C + R))} times as many; ` +
      `key-value heads to match: ${tenths((C + R) / (2 * V))}. Naive, a step takes ` +
      `${tenths(costs[3][1] / costs[4][1])} times the FLOP of absorbed. Absorbing is cheaper ${until}.`;
  }

  for (const [letter, label, sizes] of data.sliders) {
    const control = attncourse.slider(label, sizes, (i) => {
      at[letter] = sizes[i];
      show();
    });
    root.querySelector(".ac-controls").append(control.node);
    control.choose(sizes.indexOf(at[letter]));
  }
  ready = true;
  show();
});
