// Asks for a page again while nobody works in it; without this the page is as it was when it was loaded.
"use strict";
const main = () => document.getElementById("main");
const seconds = Number(main()?.dataset.refresh);
const isBusy = () => document.hidden || main().contains(document.activeElement) || main().querySelector("details[open]");
if (seconds > 0) {
  setInterval(async () => {
    if (isBusy()) return;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (!answer.ok) throw new Error(answer.statusText);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
      if (fresh && !isBusy()) main().replaceChildren(...fresh.childNodes);
      document.body.classList.remove("stale");
    } catch {
      document.body.classList.add("stale");
    }
  }, seconds * 1000);
}
