// Boxes that scroll sideways can be reached with the keyboard, but only while there is something to scroll.
// Without scripts nothing is lost in browsers that focus scrollers themselves.
const BOXES = {
  "Code": ".highlight pre",
  "Output": ".cell_output .output, .cell_output pre",
  "Table": ".pst-scrollable-table-container, .table-scroll",
  "Equation": ".katex-display",
};
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => update(target)));

function update(box) {
  if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1) {
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `${box.dataset.scrollName}, scrolls`);
  } else {
    box.removeAttribute("tabindex");
    box.removeAttribute("role");
    box.removeAttribute("aria-label");
  }
}

for (const [name, selector] of Object.entries(BOXES)) {
  for (const box of document.querySelectorAll(`article :is(${selector})`)) {
    box.dataset.scrollName = name;
    resized.observe(box);
    for (const child of box.children) resized.observe(child);
  }
}

// Boxes of `show` have a role and a name of their own: only mark that there is more to the right.
const marked = new ResizeObserver((entries) => {
  for (const box of new Set(entries.map(({ target }) => target.closest(".ac-scroll")))) {
    box.classList.toggle("ac-more", box.scrollWidth > box.clientWidth + 1);
  }
});
for (const box of document.querySelectorAll("article .ac-scroll")) {
  for (const node of [box, ...box.children]) marked.observe(node);
}

// Paper is white: a page that is dark on the screen is printed in the light theme.
const pageData = document.documentElement.dataset;
let themeOnScreen;
addEventListener("beforeprint", () => ([themeOnScreen, pageData.theme] = [pageData.theme, "light"]));
addEventListener("afterprint", () => (pageData.theme = themeOnScreen));
