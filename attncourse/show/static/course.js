// What every interactive piece of the course shares. Plain script: no request, no storage, no animation.
// A page may hold this file many times (each output carries it); the first one defines `attncourse`.
// A piece is made by attncourse.piece(name, make): make(root, data) runs once for each element with
// data-ac="name", with the JSON that Python wrote into it. Without scripts the element's own content stays.
(function () {
  "use strict";
  if (window.attncourse) return;
  const pieces = {};
  let count = 0;

  // An element, its attributes and children (nodes or text, never markup).
  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // An id, or a name for a group of radio buttons, that nothing else in this document has.
  function id() {
    return `ac-id-${++count}`;
  }

  // Where results are said: seen on the page, and read out when they change.
  function live() {
    return el("p", { class: "ac-live", role: "status", "aria-live": "polite" });
  }

  // A labelled native select.
  function select(label, items, onchange) {
    const box = el("select", { id: id() }, ...items.map((item, i) => el("option", { value: i }, item)));
    box.addEventListener("change", () => onchange(box.selectedIndex));
    return el("p", { class: "ac-select" }, el("label", { for: box.id }, label), " ", box);
  }

  // A labelled native slider along a list of texts: arrow keys, Home and End move it.
  function slider(label, items, onchange) {
    const box = el("input", { type: "range", id: id(), max: items.length - 1 });
    const value = el("span");
    function choose(i) {
      box.value = i;
      value.textContent = items[i];
      box.setAttribute("aria-valuetext", items[i]);
      onchange(i);
    }
    box.addEventListener("input", () => choose(+box.value));
    return { node: el("p", { class: "ac-slider" }, el("label", { for: box.id }, label), box, value), choose };
  }

  // Native radio buttons: arrow keys, Home and End move the choice. Items are texts or lists of nodes.
  // kind "ac-chips" sets them as words in a line, "ac-list" below each other.
  function choices(legend, items, kind, onchange) {
    const name = id();
    const inputs = items.map((_, i) => el("input", { type: "radio", name, value: i }));
    const labels = items.map((item, i) => el("label", {}, inputs[i], el("span", {}, ...[].concat(item))));
    const node = el("fieldset", {}, el("legend", {}, ...[].concat(legend)), el("div", { class: kind }, ...labels));
    function choose(i) {
      inputs[i].checked = true;
      onchange(i);
    }
    node.addEventListener("change", () => onchange(inputs.findIndex((input) => input.checked)));
    node.addEventListener("keydown", (event) => {
      const i = { Home: 0, End: inputs.length - 1 }[event.key];
      if (i === undefined) return;
      event.preventDefault();
      inputs[i].focus();
      choose(i);
    });
    return { node, choose, labels, chosen: () => inputs.findIndex((input) => input.checked) };
  }

  function mount() {
    document.querySelectorAll("[data-ac]:not([data-ac-on])").forEach((root) => {
      const make = pieces[root.dataset.ac];
      if (!make) return;
      root.dataset.acOn = "";
      // The host's own shortcuts (previous page, next cell) must not run as well.
      root.addEventListener("keydown", (event) => event.stopPropagation());
      make(root, JSON.parse(root.querySelector("script[type='application/json']").textContent));
    });
  }

  function piece(name, make) {
    pieces[name] = pieces[name] || make;
    mount();
  }

  window.attncourse = { piece, el, id, live, select, slider, choices };
})();
