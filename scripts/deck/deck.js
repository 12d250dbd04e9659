// Mathematics, the slide show, and slides that fit: what is too tall is set smaller, down to half.
const LEAST = 0.5;
const FREE = 36; // pixels at the bottom, for the page number and the arrows

function fit(slide) {
  const body = slide && slide.querySelector(":scope > .fit");
  if (!body) return;
  for (let zoom = 1; zoom >= LEAST - 0.001; zoom -= 0.05) {
    body.style.zoom = zoom;
    if (overflow(slide) <= 0) break;
  }
}

// Pixels by which a slide's content is higher or wider than the slide; at most 0 when it fits.
function overflow(slide) {
  const body = slide.querySelector(":scope > .fit");
  const scale = Reveal.getScale();
  const room = slide.getBoundingClientRect();
  const boxes = [body, ...body.querySelectorAll(":scope table, :scope pre, :scope svg, :scope figure")].map((box) => box.getBoundingClientRect());
  const right = Math.max(...boxes.map((box) => box.right)) - room.right;
  const bottom = Math.max(...boxes.map((box) => box.bottom)) - (slide.closest(".pdf-page") ?? document.querySelector(".slides")).getBoundingClientRect().bottom;
  return Math.round(Math.max(right / scale + 20, bottom / scale + FREE));
}

renderMathInElement(document.querySelector(".slides"), {
  delimiters: [{ left: "$$", right: "$$", display: true }, { left: "$", right: "$", display: false }],
  ignoredClasses: ["notes", "ac"],
});
Reveal.initialize({
  width: 1280, height: 720, margin: 0.02, center: false, hash: true, transition: "none", slideNumber: "c/t",
  pdfMaxPagesPerSlide: 1, navigationMode: "default", plugins: [RevealNotes],
}).then(() => fit(Reveal.getCurrentSlide()));
Reveal.on("slidechanged", ({ currentSlide }) => fit(currentSlide));
Reveal.on("resize", () => fit(Reveal.getCurrentSlide()));
Reveal.on("pdf-ready", () => document.querySelectorAll("section[data-cell]").forEach(fit));
