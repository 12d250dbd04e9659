// The page of results. Sphinx puts this into language_data.js, which that page loads after searchtools.js.
// Chapters first, then the glossary; last what repeats the words of others.
Scorer.score = ([page, , , , score]) => {
  if (page.startsWith("notebooks/")) return score + 12;
  if (page === "book/glossary") return score + 10;
  return /^(solutions\/|book\/(claims|quality|checks|oracles|bibliography|changelog)$)/.test(page) ? score - 15 : score;
};

// Sphinx has begun by now, if there is a query, and waits for its index. It would write how many pages it found where
// nobody hears it, and leave the focus on the page: the next Tab would begin at the top, some eighty before the results.
if (Search.status) {
  Search.status.setAttribute("role", "status");
  Search.status.tabIndex = -1;
  Search.status.style.marginTop = "1rem"; // else the field hides the upper edge of the focus
  new MutationObserver((_, observer) => {
    observer.disconnect();
    if (document.activeElement === document.body) Search.status.focus();
  }).observe(Search.status, { childList: true });
}
