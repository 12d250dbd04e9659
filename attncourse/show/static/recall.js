// Recall questions and predictions: what stands in the page without scripts becomes a form.
(function () {
  const { el, live, choices, piece } = attncourse;

  function form(place, parts, button, onsubmit) {
    const node = el("form", {}, ...parts, el("button", { type: "submit" }, button));
    node.addEventListener("submit", (event) => {
      event.preventDefault();
      onsubmit();
      node.lastChild.scrollIntoView({ block: "nearest" }); // what was answered may begin below the window
    });
    place.replaceWith(node);
    return node;
  }

  const inside = (node) => [...node.childNodes];
  const legend = (place) => [...place.querySelectorAll(":scope > p")];

  piece("questions", (root, data) => {
    const tries = []; // whether the first was right
    const count = live();
    const all = data.correct.length;
    if (all > 5) root.append(count); // a chapter's five need no sum
    root.querySelectorAll(".ac-question").forEach((question, n) => {
      const place = question.querySelector(".ac-static");
      const feedback = [...place.querySelectorAll(".ac-feedback span")];
      const options = [...place.querySelectorAll(".ac-options li")].map(inside);
      const status = live();
      const group = choices(spans(legend(place)), options, "ac-list", () => say(""));
      function say(verdict, ...nodes) {
        status.className = `ac-live ${verdict}`;
        status.replaceChildren(...nodes);
      }
      form(place, [group.node], "Check", () => {
        const i = group.chosen();
        if (i < 0) return say("", "Choose an answer first.");
        const right = i === data.correct[n];
        tries[n] ??= right;
        const todo = all - Object.keys(tries).length;
        const sum = `${tries.filter(Boolean).length} of ${all} right at the first try`;
        count.textContent = todo ? `${sum}, ${todo} to go.` : `${sum}.`;
        const mark = el("b", {}, right ? "✓ Right. " : "✗ Not this one. ");
        say(right ? "ac-right" : "ac-wrong", mark, feedback[i].cloneNode(true));
      }).append(status);
    });
  });

  piece("predict", (root) => {
    const place = root.querySelector(".ac-static");
    const options = [...place.querySelectorAll(".ac-options li")].map(inside);
    const answer = place.querySelector(".ac-answer");
    const status = live();
    const heading = spans(legend(place));
    let guess, control;
    if (options.length) {
      const group = choices(heading, options, "ac-list", () => {});
      control = group.node;
      guess = () => (group.chosen() < 0 ? "" : options[group.chosen()].map((node) => node.textContent).join(""));
    } else {
      const box = el("input", { type: "text", autocomplete: "off" });
      control = el("label", {}, ...heading, box);
      guess = () => box.value.trim();
    }
    form(place, [control], "Reveal", () => {
      if (!guess()) return status.replaceChildren("Write down your guess first.");
      const rows = [["Your guess", guess()], ["Answer", ...inside(answer).map((node) => node.cloneNode(true))]];
      status.replaceChildren(
        ...rows.map(([name, ...value]) => el("span", { class: "ac-pair" }, el("b", {}, name), el("span", {}, ...value))),
      );
    }).append(status);
  });

  // A legend and a label hold phrases, not paragraphs.
  function spans(paragraphs) {
    return paragraphs.map((p) => el("span", { class: p.className }, ...inside(p)));
  }
})();
