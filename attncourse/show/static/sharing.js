// Query heads that share key-value heads. Every number said comes from Python; the lines are drawn here.
attncourse.piece("sharing", (root, data) => {
  const { el, slider, choices } = attncourse;
  const [width, left, top, fall, bar] = data.size;
  const at = { heads: data.start[0], step: data.start[1], tokens: data.start[2] };
  const two = (x) => x.toFixed(2);

  function draw(H, G) {
    const radius = Math.min(5, (0.38 * width) / H);
    const side = Math.min(16, (0.8 * width) / G);
    const [r, s, under] = [two(radius), two(side), two(top + fall - side / 2)];
    const paths = { reads: "", asks: "", keys: "" };
    for (let h = 0; h < H; h++) {
      const x = left + (width * (h + 0.5)) / H;
      const to = left + (width * (Math.floor(h / (H / G)) + 0.5)) / G;
      paths.reads += `M${two(x)} ${two(top + radius)}L${two(to)} ${under}`;
      paths.asks += `M${two(x - radius)} ${top}a${r} ${r} 0 1 0 ${two(2 * radius)} 0`;
      paths.asks += `a${r} ${r} 0 1 0 ${two(-2 * radius)} 0z`;
    }
    for (let g = 0; g < G; g++) {
      paths.keys += `M${two(left + (width * (g + 0.5)) / G - side / 2)} ${under}h${s}v${s}h${two(-side)}z`;
    }
    paths.room = `M${left} ${top + fall + 42}h${two((width * G) / H)}v${bar}H${left}z`;
    for (const [name, d] of Object.entries(paths)) root.querySelector(`.ac-${name}`).setAttribute("d", d);
    root.querySelector(".ac-n-queries").textContent = H;
    root.querySelector(".ac-n-keys").textContent = G;
  }

  function show() {
    const { H, steps } = data.heads[at.heads];
    const { G, bytes, cache, flop } = steps[at.step];
    draw(H, G);
    const n = H / G;
    const name = n === 1 ? "multi-head" : G === 1 ? "multi-query" : "grouped-query";
    let who = n === 1 ? "each query head reads one of its own" : "all query heads read the same one";
    if (n > 1 && G > 1) {
      who = `query heads 0 to ${n - 1} read head 0, ${n} to ${2 * n - 1} head 1${G > 2 ? ", and so on" : ""}`;
    }
    const share = n === 1 ? "as much as multi-head attention" : `1/${n} of multi-head attention's`;
    const lines = [
      `H = ${H}, G = ${G}, ${name}: ${who}.`,
      `Cache: ${bytes} bytes a token and layer. ` +
        `${data.layers}, ${data.tokens[at.tokens]} tokens: ${cache[at.tokens]}, ${share}.`,
      `A step of attention: ${flop} FLOP for each byte of the cache that it reads.`,
    ];
    root.querySelector(".ac-live").replaceChildren(...lines.map((line) => el("p", {}, line)));
  }

  // A slider for each H, since each has divisors of its own; another H keeps the nearest G.
  const sliders = data.heads.map(({ steps }) =>
    slider("Key-value heads", steps.map((step) => step.G), (i) => {
      at.step = i;
      show();
    }),
  );
  const heads = choices("Query heads", data.heads.map(({ H }) => `${H}`), "ac-chips", (i) => {
    const { G } = data.heads[at.heads].steps[at.step];
    at.heads = i;
    sliders.forEach(({ node }, n) => (node.hidden = n !== i));
    sliders[i].choose(data.heads[i].steps.findIndex((step) => step.G <= G));
  });
  const tokens = slider("Tokens", data.tokens, (i) => {
    at.tokens = i;
    show();
  });
  root.querySelector(".ac-controls").append(heads.node, ...sliders.map(({ node }) => node), tokens.node);
  const { step } = at;
  heads.choose(at.heads);
  sliders[at.heads].choose(step);
  tokens.choose(at.tokens);
});
