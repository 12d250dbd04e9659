// The page of results. Sphinx puts this into language_data.js, which that page loads after searchtools.js.
// Chapters first, then the glossary; last what repeats the words of others.
Scorer.score = ([page, , , , score]) => {
  if (page.startsWith("notebooks/")) return score + 12;
  if (page === "book/glossary") return score + 10;
  return /^(solutions\/|book\/(claims|quality|checks|oracles|bibliography|changelog)$)/.test(page) ? score - 15 : score;
};
