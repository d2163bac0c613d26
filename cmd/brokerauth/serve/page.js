'use strict'

// The secret that a ticket was traded for. This tab's storage keeps it over a reload; no cookie, no address has it.
const keptAs = 'brokerauth'
const cards = new Map() // by id: {el, data}
const $ = (selector, within = document) => within.querySelector(selector)

function notice(text) {
  $('#notice').textContent = text
  $('#notice').hidden = !text
}

function show(el, text) {
  if (el.textContent !== text) el.textContent = text
  el.hidden = !text
}

const post = (path, body) => fetch(path, {
  method: 'POST',
  headers: { 'Content-Type': 'application/json', Authorization: 'Bearer ' + sessionStorage.getItem(keptAs) },
  body: JSON.stringify(body),
})

async function enter() {
  const ticket = location.hash.slice(1)
  if (!ticket) return Boolean(sessionStorage.getItem(keptAs))
  history.replaceState(null, '', '/')
  const answer = await post('/session', { ticket })
  if (!answer.ok) return Boolean(sessionStorage.getItem(keptAs))
  sessionStorage.setItem(keptAs, (await answer.json()).secret)
  return true
}

// words for a time span, in its two greatest units
function inWords(ms) {
  const s = Math.floor(ms / 1000), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24)
  if (d > 0) return h % 24 ? `${d} d ${h % 24} h` : `${d} d`
  if (h > 0) return m % 60 ? `${h} h ${m % 60} min` : `${h} h`
  if (m > 0) return `${m} min`
  return `${s} s`
}

function clock(el, name, span, none, over) {
  const bar = $('.bar', el), now = Date.now()
  const until = Date.parse(span.until), from = Date.parse(span.from)
  let text = none, part = 0
  if (!isNaN(until)) {
    const left = until - now
    part = left <= 0 ? 0 : isNaN(from) || from >= until ? 1 : Math.min(1, left / (until - from))
    text = left > 0 ? `${inWords(left)} left` : `over ${inWords(-left)} ago`
  }
  if (over) [text, part] = [over, 0]
  const bare = isNaN(until)
  bar.hidden = bare
  bar.classList.toggle('low', part <= 0.2 && part > 0)
  bar.classList.toggle('out', part === 0)
  bar.firstElementChild.style.width = (100 * part).toFixed(1) + '%'
  bar.setAttribute('aria-label', name)
  bar.setAttribute('aria-valuenow', Math.round(100 * part))
  bar.setAttribute('aria-valuetext', text)
  if ($('.left', el).textContent !== text) $('.left', el).textContent = text
}

const plain = { out: 'logged out', leaving: 'logging out', proving: 'checking' }

// draw brings a card up to date, and leaves whatever has the focus alone.
function draw({ el, data }) {
  el.className = data.state
  el.dataset.refreshed = data.access.from || ''
  const name = data.broker + (data.profile === 'default' ? '' : ', profile ' + data.profile)
  $('.broker', el).textContent = data.broker
  $('.profile', el).textContent = [data.profile === 'default' ? '' : data.profile, data.identity ? data.identity + '…' : ''].filter(Boolean).join(' · ')
  $('.state', el).textContent = plain[data.state] || data.state
  $('.access', el).hidden = $('.login', el).hidden = !data.in
  clock($('.access', el), 'Access token of ' + name, data.access, data.access.from ? 'no end' : 'none yet: the next use brings one')
  clock($('.login', el), 'Login of ' + name, data.login, data.endless ? 'no end' : 'no end that is known',
    data.state === 'ended' ? 'has ended' : '')
  const at = Date.parse(data.access.from)
  show($('.refreshed', el), data.in && !isNaN(at) ? `Last refresh ${inWords(Math.max(0, Date.now() - at))} ago, at ${new Date(at).toLocaleTimeString()}` : '')
  show($('.what', el), data.what || '')
  show($('.remedy', el), data.remedy || '')
  $('.trouble', el).hidden = !data.what && !data.remedy
  show($('.note', el), data.note || '')
  if (data.state !== 'waiting') $('.open', el).hidden = true
  for (const button of el.querySelectorAll('[data-do]')) {
    const can = data.can.includes(button.dataset.do)
    if (!can && button === document.activeElement && !button.hidden) el.focus()
    button.hidden = !can
    button.setAttribute('aria-label', button.textContent + ': ' + name)
  }
  const login = $('[data-do=login]', el)
  login.classList.toggle('main', !data.in || ['ended', 'due', 'overdue', 'refused'].includes(data.state))
  el.setAttribute('aria-label', name)
}

function add(data) {
  const el = $('#card').content.firstElementChild.cloneNode(true)
  el.tabIndex = -1
  const card = { el, data }
  for (const button of el.querySelectorAll('[data-do]')) button.addEventListener('click', () => press(card, button.dataset.do))
  const form = $('.grant', el)
  form.addEventListener('submit', event => {
    event.preventDefault()
    const body = { id: card.data.id, secret: form.secret.value, grant: form.grant.value }
    form.reset()
    form.hidden = true
    act(card, 'login', body)
  })
  $('.close', form).addEventListener('click', () => { form.reset(); form.hidden = true })
  cards.set(data.id, card)
  return card
}

function speak(text) { $('#spoken').textContent = text }

function update(view) {
  notice(view.fault || '')
  const places = new Set(view.cards.filter(card => card.in).map(card => card.store))
  $('#place').textContent = places.size ? 'kept in ' + [...places].join(', ') : ''
  const seen = new Set()
  for (const data of view.cards) {
    seen.add(data.id)
    let card = cards.get(data.id)
    if (!card) card = add(data)
    else if (card.data.state !== data.state) speak(`${data.broker}: ${plain[data.state] || data.state}`)
    card.data = data
    draw(card)
  }
  order($('#cards'), view.cards.filter(data => !data.aside))
  order($('#aside'), view.cards.filter(data => data.aside))
  for (const [id, card] of cards) {
    if (!seen.has(id)) { card.el.remove(); cards.delete(id) }
  }
  const unset = $('#unset'), text = JSON.stringify(view.others)
  if (unset.dataset.text !== text) {
    unset.dataset.text = text
    unset.replaceChildren(...(view.others || []).flatMap(other => {
      const dt = document.createElement('dt'), dd = document.createElement('dd')
      dt.textContent = other.broker
      dd.textContent = other.text
      return [dt, dd]
    }))
  }
  $('#others').hidden = !$('#aside').childElementCount && !unset.childElementCount
  if (!$('#cards').childElementCount) $('#others').open = true
}

// order puts cards into a place, and moves none that stands right: what has the focus keeps it.
function order(place, list) {
  const els = list.map(data => cards.get(data.id).el)
  if (els.length === place.childElementCount && els.every((el, i) => el === place.children[i])) return
  const focused = document.activeElement
  place.replaceChildren(...els)
  if (place.contains(focused)) focused.focus()
}

function sure(data) {
  const dialog = $('#sure')
  $('#sure-what').textContent = `Log out of ${data.broker}${data.profile === 'default' ? '' : ', profile ' + data.profile}?`
  dialog.showModal()
  return new Promise(resolve => {
    const done = yes => { dialog.close(); resolve(yes) }
    for (const button of dialog.querySelectorAll('button')) button.onclick = () => done(button.value === 'yes')
    dialog.oncancel = () => resolve(false)
  })
}

async function press(card, what) {
  const { el, data } = card
  if (what === 'logout' && !await sure(data)) return
  if (what === 'login' && data.grant) {
    $('.grant', el).hidden = false
    $('.grant', el).secret.focus()
    return
  }
  act(card, what, { id: data.id })
}

async function act(card, what, body) {
  let answer
  try {
    answer = await post('/' + what, body)
  } catch {
    return // the stream tells that the program is gone
  }
  if (answer.status === 401) return locked()
  const { open } = answer.ok ? await answer.json() : {}
  if (!open) return // whatever went wrong stands on the card
  const tab = window.open(open, '_blank')
  if (tab) {
    tab.opener = null
  } else {
    const link = $('.open a', card.el)
    link.href = open
    link.parentElement.hidden = false
    link.onclick = () => { link.parentElement.hidden = true }
  }
}

function locked() {
  sessionStorage.removeItem(keptAs)
  notice('This page is locked. Open the newest address that the terminal shows: each works once.')
  for (const card of cards.values()) card.el.remove()
  cards.clear()
}

// EventSource could send no header, so this reads the stream itself.
async function watch() {
  for (;;) {
    try {
      const answer = await fetch('/events', { headers: { Authorization: 'Bearer ' + sessionStorage.getItem(keptAs) } })
      if (answer.status === 401) return locked()
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
      let rest = ''
      for (;;) {
        const { done, value } = await reader.read()
        if (done) break
        const events = (rest + value).split('\n\n')
        rest = events.pop()
        for (const event of events) {
          if (event.startsWith('data: ')) update(JSON.parse(event.slice(6)))
        }
      }
    } catch { }
    notice('brokerauth does not answer. Start it again, and open the address that it prints.')
    await new Promise(resolve => setTimeout(resolve, 2000))
  }
}

// Whoever pastes a new address into this tab changes no more than what is behind the #.
addEventListener('hashchange', () => location.reload())
setInterval(() => cards.forEach(draw), 1000)
enter().then(ok => ok ? watch() : locked())
