// What the theme leaves out for those who use a keyboard or a screen reader: a table that is wider than the page can be
// scrolled, and the search dialog has a name.
addEventListener("load", () => {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((table, index) => {
    let heading = table
    while (heading && !/^H[1-6]$/.test(heading.tagName)) heading = heading.previousElementSibling ?? heading.parentElement
    table.tabIndex = 0
    table.setAttribute("role", "region")
    table.setAttribute("aria-label", `Table ${index + 1}: ${heading?.textContent.trim() ?? document.title}`)
  })
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search")
})
