(function () {
  var root = document.documentElement, button = document.getElementById("theme");
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function now() { return root.dataset.theme || (dark.matches ? "dark" : "light"); }
  function name() { button.textContent = now() === "dark" ? "Light" : "Dark"; }
  button.hidden = false;
  button.onclick = function () { root.dataset.theme = now() === "dark" ? "light" : "dark"; name(); };
  dark.addEventListener("change", name);
  window.addEventListener("beforeprint", function () { root.dataset.screen = root.dataset.theme || ""; root.dataset.theme = "light"; });
  window.addEventListener("afterprint", function () {
    if (root.dataset.screen) { root.dataset.theme = root.dataset.screen; } else { delete root.dataset.theme; }
  });
  name();
})();
