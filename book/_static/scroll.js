// Boxes that scroll sideways can be reached with the keyboard, but only while there is something to scroll. Across, one
// pixel is enough: browsers stop there by themselves, and the theme too.
// Without scripts nothing is lost in browsers that focus scrollers themselves.
const BOXES = {
  "Code": ".highlight pre",
  "Output": ".cell_output .output, .cell_output pre",
  "Table": ".pst-scrollable-table-container, .table-scroll",
  "Equation": ".katex-display",
};
const resized = new ResizeObserver((entries) => {
  const near = entries.flatMap(({ target }) => [target, target.parentElement]);
  const boxes = [...new Set(near)].filter((box) => box.dataset.scrollName);
  const overflow = boxes.map((box) => box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight + 1);
  boxes.forEach((box, i) => update(box, overflow[i])); // all is measured before anything changes: one layout, not hundreds
});

function update(box, overflows) {
  if (overflows) {
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

// Boxes of `show` have a role, a name and a stop of their own: mark that there is more to the right, or take the stop.
const marked = new ResizeObserver((entries) => {
  const boxes = [...new Set(entries.map(({ target }) => target.closest(".ac-scroll")))];
  const more = boxes.map((box) => box.scrollWidth > box.clientWidth);
  boxes.forEach((box, i) => {
    box.classList.toggle("ac-more", more[i]);
    if (more[i]) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
});
for (const box of document.querySelectorAll("article .ac-scroll")) {
  for (const node of [box, ...box.children]) marked.observe(node);
}

// A box higher than the window is shown from its top: a browser would show its middle, thousands of pixels further on.
addEventListener("focusin", ({ target }) => {
  const high = target.clientHeight > innerHeight && target.matches(":focus-visible");
  if (high && target.getBoundingClientRect().top < 0) target.scrollIntoView({ block: "start" });
});

// Some buttons drop the focus when they are pressed, and the next Tab begins at the top of the page. A press with the
// keyboard (its click has no count) leaves it where it was.
addEventListener("click", ({ target, detail }) => {
  const button = detail === 0 && target.closest?.(".copybtn, .theme-switch-button, .primary-toggle");
  if (button) setTimeout(() => document.activeElement === document.body && button.focus({ preventScroll: true }));
}, true);

// On a narrow screen the contents of a page lie over it: who has chosen a section wants to see it.
const contents = document.getElementById("pst-secondary-sidebar-modal");
contents?.addEventListener("click", ({ target }) => target.closest('a[href^="#"]') && contents.close());

// Paper is white: a page that is dark on the screen is printed in the light theme.
const pageData = document.documentElement.dataset;
let themeOnScreen;
addEventListener("beforeprint", () => ([themeOnScreen, pageData.theme] = [pageData.theme, "light"]));
addEventListener("afterprint", () => (pageData.theme = themeOnScreen));
