// Filters of the gallery, and the dialog that shows an image large.
const viewer = document.getElementById("viewer");
const view = (name) => document.getElementById(`viewer-${name}`);
const NO_MAP = "", OPACITY = 0.45, OPACITY_SIGNED = 0.8;
let open = null; // the tile that the dialog shows

function tilesOf(tile) {
  return [...tile.parentElement.querySelectorAll(".tile:not([hidden])")];
}

function heats(tile) {
  return [...tile.querySelectorAll(".heat")];
}

function matches(tile, wanted) {
  const truth = tile.dataset.truth.trim().split(" ").filter(Boolean);
  if (wanted.truth === "none" ? truth.length : wanted.truth && !truth.includes(wanted.truth)) return false;
  if (wanted.called && tile.dataset.called !== wanted.called) return false;
  return !wanted.wrong || tile.dataset.wrong === wanted.wrong;
}

for (const bar of document.querySelectorAll("[data-filters]")) {
  const tiles = [...document.querySelectorAll(`[data-gallery="${bar.dataset.filters}"] .tile`)];
  const field = (name) => bar.querySelector(`[data-filter="${name}"]`);
  const methods = new Set(tiles.flatMap((tile) => heats(tile).map((heat) => heat.dataset.method)));
  for (const method of methods) html("option", { value: method }, field("method"), method);
  html("option", { value: NO_MAP }, field("method"), "none");
  const apply = () => {
    const wanted = Object.fromEntries(["truth", "called", "wrong"].map((name) => [name, field(name).value]));
    for (const tile of tiles) {
      tile.hidden = !matches(tile, wanted);
      for (const heat of heats(tile)) heat.hidden = heat.dataset.method !== field("method").value;
    }
    const shown = tiles.filter((tile) => !tile.hidden);
    const mapped = shown.filter((tile) => heats(tile).some((heat) => !heat.hidden)).length;
    const few = field("method").value !== NO_MAP && mapped < shown.length;
    field("count").textContent = `${shown.length} of ${tiles.length} images`
      + (few ? `, ${mapped} with this map` : "");
  };
  bar.addEventListener("change", apply);
  bar.hidden = false;
  apply();
  for (const tile of tiles) {
    tile.querySelector(".open").addEventListener("click", () => {
      show(tile);
      viewer.showModal();
    });
  }
}

function show(tile) {
  open = tile;
  const image = tile.querySelector(".layers img");
  view("title").replaceChildren(...tile.querySelector(".call").cloneNode(true).childNodes);
  view("text").textContent = image.alt;
  view("image").src = image.src;
  view("image").alt = image.alt;
  const select = view("method"), before = heats(tile).findIndex((heat) => !heat.hidden);
  select.replaceChildren();
  heats(tile).forEach((heat, i) =>
    html("option", { value: i }, select, `${heat.dataset.method}: ${heat.dataset.label}`));
  html("option", { value: -1 }, select, "none");
  select.value = String(before);
  lay();
  const all = tilesOf(tile), place = all.indexOf(tile);
  view("back").disabled = place <= 0;
  view("next").disabled = place === all.length - 1;
  if (document.activeElement === document.body) view("close").focus(); // its button went out
}

// The chosen heat map over the image, as strong as the method is best read.
function lay() {
  const heat = heats(open)[Number(view("method").value)];
  view("heat").hidden = !heat;
  if (!heat) return;
  view("heat").src = heat.src;
  view("heat").alt = heat.alt;
  const strength = heat.classList.contains("both") ? OPACITY_SIGNED : OPACITY;
  view("strength").value = 100 * strength;
  view("heat").style.opacity = strength;
}

function step(by) {
  const all = tilesOf(open), next = all[all.indexOf(open) + by];
  if (next) show(next);
}

view("method").addEventListener("change", lay);
view("strength").addEventListener("input", () => {
  view("heat").style.opacity = view("strength").value / 100;
});
view("back").addEventListener("click", () => step(-1));
view("next").addEventListener("click", () => step(1));
view("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("close", () => open.querySelector(".open").focus());
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close(); // the backdrop
});
viewer.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select")) return; // the arrows are theirs
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
