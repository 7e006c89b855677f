// The page is whole without this: it adds the slider over steps and the gallery's filter, and puts what the judge saw
// behind a tick.
const byId = (id) => document.getElementById(id);

const slide = byId("steps");
function slideTo() {
  const place = Number(slide.value);
  document.querySelectorAll("#hero figure").forEach((figure) => {
    figure.querySelectorAll("img").forEach((image, number) => { image.hidden = number !== place; });
  });
  const told = document.querySelectorAll("#hero figure img")[place].dataset.told;
  byId("steps-told").textContent = told;
  slide.setAttribute("aria-valuetext", told);
}
if (slide) {
  slide.addEventListener("input", slideTo);
  byId("slide").hidden = false;
  slideTo();
}

const gallery = byId("gallery");
const cards = [...gallery.children].map((card) => ({
  card, words: card.textContent.toLowerCase(), figures: [...card.querySelectorAll("figure")],
}));
const chosen = (id) => (byId(id) ? byId(id).value : "");

function rightly(figures, wanted) {
  const verdicts = figures.map((figure) => figure.dataset.right);
  return wanted === "" || (wanted === "yes") === verdicts.every((verdict) => verdict === "yes");
}

function filter() {
  const words = chosen("words").toLowerCase().split(/\s+/).filter(Boolean);
  const [task, picture, verdict] = ["task", "picture", "verdict"].map(chosen);
  let count = 0;
  for (const { card, words: text, figures } of cards) {
    const compared = figures.filter((figure) => picture === "" || figure.dataset.picture === picture);
    figures.forEach((figure) => { figure.hidden = !compared.includes(figure); });
    card.hidden = !(words.every((word) => text.includes(word)) && (task === "" || card.dataset.task === task) && rightly(compared, verdict));
    count += !card.hidden;
  }
  gallery.classList.toggle("single", picture !== "");
  gallery.classList.toggle("plain", !byId("boxes")?.checked);
  byId("count").textContent = `${count} of ${cards.length} shown`;
}
byId("controls").addEventListener("input", filter);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").hidden = false;
filter();
