// Finding and sorting classes in the report.

const find = document.getElementById("find"), body = document.querySelector("#classes tbody");
find.addEventListener("input", () => {
  const wanted = find.value.toLowerCase();
  for (const row of body.rows) row.hidden = !row.dataset.find.includes(wanted);
});
for (const head of document.querySelectorAll("#classes th[data-key]")) head.addEventListener("click", () => {
  const key = head.dataset.key, down = head.dataset.down = head.dataset.down === "1" ? "0" : "1";
  const sign = down === "1" ? -1 : 1;
  body.append(...[...body.rows].sort((a, b) => sign * (a.dataset[key] - b.dataset[key])));
});
