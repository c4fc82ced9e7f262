// Finding and sorting classes in the report.

const find = document.getElementById("find"), body = document.querySelector("#classes tbody");
const order = new Intl.Collator(undefined, {numeric: true});

// The words of a text, without punctuation and accents: "miku vocaloid" finds "miku (vocaloid)".
const words = text => text.normalize("NFKD").toLowerCase().replace(/\p{M}/gu, "").match(/[\p{L}\p{N}]+/gu) ?? [];

const known = [...body.rows].map(row => {
  const text = `${row.dataset.id} ${row.dataset.name}`;
  return {row, text: text.toLowerCase(), plain: words(text).join(" ")};
});
find.addEventListener("input", () => {
  const typed = find.value.trim().toLowerCase(), wanted = words(typed);
  for (const {row, text, plain} of known) {
    const all = wanted.length > 0 && wanted.every(word => plain.includes(word));
    row.hidden = !all && !text.includes(typed);
  }
});
for (const head of document.querySelectorAll("#classes th[data-key]")) head.addEventListener("click", () => {
  const key = head.dataset.key, down = head.dataset.down = head.dataset.down === "1" ? "0" : "1";
  const sign = down === "1" ? -1 : 1;
  body.append(...[...body.rows].sort((a, b) => sign * order.compare(a.dataset[key], b.dataset[key])));
});
