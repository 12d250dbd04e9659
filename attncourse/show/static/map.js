// The map of attention. Every place and text comes from Python; the script lights what belongs together, and tells it.
attncourse.piece("map", (root, data) => {
  const { el } = attncourse;
  const said = root.querySelector(".ac-atlas-said");
  const items = root.querySelectorAll(".ac-atlas-list > li");
  const drawings = [...root.querySelectorAll(".ac-atlas > svg")];
  const hint = () => el("p", {}, "Choose a mechanism or a condition: here you read what is known of it.");
  let pinned = null;
  let from = 0; // the node whose theorems the arrow keys go through

  // It stays where it is: what the panel says gives way to the first mechanism that has the focus.
  drawings[0].before(el("p", { class: "ac-dim ac-controls ac-keyboard" }, "With the keyboard: arrow keys go along in time, " +
    "and across through theorems; Enter opens the chapter."));

  // What belongs to a choice {node} or {theorems}.
  function belongs(choice) {
    if (choice.node !== undefined) {
      const { theorems } = data.nodes[choice.node];
      return { theorems, nodes: [choice.node, ...theorems.flatMap((i) => data.theorems[i].of)] };
    }
    return { theorems: choice.theorems, nodes: choice.theorems.flatMap((i) => data.theorems[i].of) };
  }

  function light(choice) {
    const { theorems, nodes } = choice ? belongs(choice) : { theorems: [], nodes: [] };
    for (const svg of drawings) {
      svg.classList.toggle("ac-some", !!choice);
      svg.querySelectorAll(".ac-node, .ac-theorem, .ac-line, .ac-rail").forEach((part) => {
        const { node, theorem, is } = part.dataset;
        const own = is === undefined ? [] : is.split(" ").map(Number);
        const lit = theorems.includes(+theorem) || nodes.includes(+node) || own.some((i) => theorems.includes(i));
        part.classList.toggle("ac-lit", !!choice && lit);
        const at = choice && (choice.node === undefined ? choice.theorems.includes(+theorem) : choice.node === +node);
        part.classList.toggle("ac-at", !!at);
      });
    }
  }

  function tell(choice) {
    said.classList.toggle("ac-told", !!choice);
    if (!choice) return said.replaceChildren(hint());
    const close = el("button", { type: "button" }, "Close");
    close.addEventListener("click", () => pinHere(null));
    if (choice.node === undefined) {
      const copies = choice.theorems.flatMap((i) => [...items[i].children].map((part) => part.cloneNode(true)));
      return said.replaceChildren(...copies, close);
    }
    const { title, year, about, links, theorems } = data.nodes[choice.node];
    const buttons = theorems.map((i) => {
      const button = el("button", { type: "button" }, data.theorems[i].name);
      button.addEventListener("click", () => pinHere({ theorems: [i] }));
      return button;
    });
    said.replaceChildren(
      el("p", {}, el("b", {}, title), ` (${year})`),
      el("p", {}, about),
      el("p", { class: "ac-atlas-links" }, ...links.map(([text, href]) => el("a", { href }, text))),
      el("div", { class: "ac-theorems" }, ...buttons, close),
    );
  }

  function show(choice) {
    light(choice);
    tell(choice);
  }

  function pin(choice) {
    pinned = choice;
    show(choice);
  }

  // The button that was pressed is gone afterwards: the panel takes its focus.
  said.tabIndex = -1;
  function pinHere(choice) {
    pin(choice);
    said.focus({ preventScroll: true });
  }

  // The choice that a part of a drawing stands for.
  function choiceOf(target) {
    const part = target.closest(".ac-node, .ac-theorem, .ac-line, .ac-rail");
    if (!part) return null;
    const { node, theorem, is } = part.dataset;
    if (node !== undefined) return { node: +node };
    return { theorems: theorem === undefined ? (is || "").split(" ").filter(Boolean).map(Number) : [+theorem] };
  }

  drawings.forEach((svg) => {
    const nodes = [...svg.querySelectorAll(".ac-node")];
    const theorems = [];
    svg.querySelectorAll(".ac-theorem[data-theorem]").forEach((part) => (theorems[part.dataset.theorem] = part));
    const parts = [...nodes, ...theorems.filter(Boolean)];
    const down = svg.classList.contains("ac-atlas-narrow");
    const time = down ? ["ArrowUp", "ArrowDown"] : ["ArrowLeft", "ArrowRight"];
    const across = down ? ["ArrowLeft", "ArrowRight"] : ["ArrowUp", "ArrowDown"];

    function rove(part) {
      parts.forEach((other) => other.setAttribute("tabindex", other === part ? 0 : -1));
    }
    rove(nodes[0]);

    function go(part) {
      rove(part);
      part.focus();
    }

    // On the links themselves: a drawing that listens for a focus takes it.
    parts.forEach((part) => part.addEventListener("focus", () => {
      rove(part);
      const choice = choiceOf(part);
      if (choice.node !== undefined) from = choice.node;
      pin(choice);
      // What the keyboard has come to must not lie under the panel, which sticks to the bottom of a narrow window. A
      // press of the pointer must not scroll: its click would land on something else.
      const hidden = part.getBoundingClientRect().bottom > said.getBoundingClientRect().top;
      if (down && hidden && part.matches(":focus-visible")) part.scrollIntoView({ block: "center" });
    }));
    svg.addEventListener("keydown", (event) => {
      const choice = choiceOf(event.target);
      const { key } = event;
      const step = time.includes(key) ? 2 * time.indexOf(key) - 1 : 0;
      const aside = across.includes(key) ? 2 * across.indexOf(key) - 1 : 0;
      if (key === "Home" || key === "End") go(nodes.at(key === "Home" ? 0 : -1));
      else if (key === "Escape") pin(null);
      else if (step && choice.node !== undefined) go(nodes[Math.min(nodes.length - 1, Math.max(0, choice.node + step))]);
      else if (step) {
        const ends = data.theorems[choice.theorems[0]].of;
        go(nodes[step < 0 ? Math.min(...ends) : Math.max(...ends)]);
      } else if (aside) {
        const own = data.nodes[from].theorems;
        const here = choice.node === undefined ? own.indexOf(choice.theorems[0]) : aside > 0 ? -1 : own.length;
        const next = here + aside;
        go(own[next] === undefined ? nodes[from] : theorems[own[next]]);
      } else return;
      event.preventDefault();
    });
    svg.addEventListener("pointerover", (event) => {
      if (pinned || event.pointerType === "touch") return;
      show(choiceOf(event.target));
    });
    svg.addEventListener("pointerleave", () => pinned || show(null));
    // A click chooses; Enter, a second click, or one with a key held, follows the link.
    svg.addEventListener("click", (event) => {
      const choice = choiceOf(event.target);
      if (!choice) return pin(null);
      if (!event.detail || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      pin(choice);
    });
  });
  show(null);
});
