// A person at an emulated broker's login page.
import assert from 'node:assert/strict'

// approve opens the login page, presses Approve, and returns where the browser is sent.
export async function approve(loginURL) {
  const page = await fetch(loginURL, { redirect: 'manual' })
  assert.equal(page.status, 200, 'the login page')
  assert.match(await page.text(), /Approve/)
  const sent = await fetch(loginURL, {
    method: 'POST',
    headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
    body: 'button=approve',
    redirect: 'manual',
  })
  assert.equal(sent.status, 302, 'the answer to Approve')
  return new URL(sent.headers.get('location'))
}

// until waits for ms.
export const until = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
