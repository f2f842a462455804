// What a page can and cannot read of the proxy's responses. run.py serves this to each origin, with the addresses in
// SETTING, and has the expected result of each check. Every check returns a string, `blocked` where the browser hides the
// response from the page.
'use strict';

const CHECK_LIMIT = 10000; // milliseconds until a check counts as timed out

const text = async (url, options) => (await fetch(url, options)).text();
const status = async (url, options) => {
  const response = await fetch(url, options);
  const body = await response.text();
  return `${response.status} ${body.length > 0 ? 'with its sentence' : 'empty'}`;
};
const json = (method) => ({
  method,
  headers: { 'Content-Type': 'application/json', 'X-Custom': 'custom' },
  body: '{"a":1}',
});

// The first three messages of an EventSource, or `blocked`.
const events = (url, options) =>
  new Promise((resolve) => {
    const source = new EventSource(url, options);
    const seen = [];
    source.onmessage = (event) => {
      seen.push(event.data);
      if (seen.length === 3) {
        source.close();
        resolve(seen.join(' '));
      }
    };
    source.onerror = () => {
      source.close();
      resolve('blocked');
    };
  });

const echoed = (url) =>
  new Promise((resolve) => {
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send('over and out');
    socket.onmessage = (event) => {
      socket.close();
      resolve(event.data);
    };
    socket.onerror = () => resolve('blocked');
  });

// What a page with an opaque origin gets: its requests have `Origin: null`.
const nameless = (url) =>
  new Promise((resolve) => {
    const frame = document.createElement('iframe');
    frame.sandbox = 'allow-scripts';
    frame.srcdoc = `<script>
      fetch(${JSON.stringify(url)}).then((r) => r.text()).catch(() => 'blocked').then((t) => parent.postMessage(t, '*'));
    <\/script>`;
    addEventListener('message', (event) => {
      if (event.source === frame.contentWindow) {
        frame.remove();
        resolve(event.data);
      }
    });
    document.body.append(frame);
  });

// Whether the upstream receives the target that the browser sent, byte by byte.
const asMeant = async (url) => {
  const meant = new URL(url);
  const seen = await text(url);
  const sent = meant.pathname.replace(/^\/list/, '') + meant.search;
  return seen === sent ? 'as meant' : `${sent} became ${seen}`;
};

const checks = (at) => ({
  'a simple request': () => text(`${at.proxy}/list/plain`),
  'a simple request with a body': () => text(`${at.proxy}/list/echo`, { method: 'POST', body: 'hello' }),
  'PUT with a field of its own': () => text(`${at.proxy}/list/echo`, json('PUT')),
  'PATCH with a field of its own': () => text(`${at.proxy}/list/echo`, json('PATCH')),
  'DELETE': () => text(`${at.proxy}/list/echo`, { method: 'DELETE' }),
  'a method that is not allowed': () => text(`${at.proxy}/strict/echo`, { method: 'DELETE' }),
  'a field that is not allowed': () => text(`${at.proxy}/strict/plain`, { headers: { 'X-Custom': 'custom' } }),
  'an exposed field': async () => (await fetch(`${at.proxy}/list/plain`)).headers.get('X-Extra') ?? 'blocked',
  'a field that is not exposed': async () => (await fetch(`${at.proxy}/star/plain`)).headers.get('X-Extra') ?? 'blocked',
  'cookies': async () => {
    await text(`${at.proxy}/list/cookie`, { credentials: 'include' });
    return text(`${at.proxy}/list/cookie`, { credentials: 'include' });
  },
  'cookies with a preflight': async () => {
    await text(`${at.proxy}/list/cookie`, { credentials: 'include' });
    return text(`${at.proxy}/list/cookie`, { credentials: 'include', headers: { 'X-Custom': 'custom' } });
  },
  'cookies where the upstream grants them': () => text(`${at.proxy}/auto/generous`, { credentials: 'include' }),
  'cookies where the upstream does not': () => text(`${at.proxy}/auto/plain`, { credentials: 'include' }),
  'a star': () => text(`${at.proxy}/star/plain`),
  'a star with cookies': () => text(`${at.proxy}/star/plain`, { credentials: 'include' }),
  'a star with a preflight': () => text(`${at.proxy}/star/echo`, json('PUT')),
  'a star for a page without an origin': () => nameless(`${at.proxy}/star/plain`),
  'a list for a page without an origin': () => nameless(`${at.proxy}/list/plain`),
  'a route with CORS off': () => text(`${at.proxy}/off/plain`),
  'any port of localhost': () => text(`${at.proxy}/ports/plain`),
  'a 400 of ours': () => status(`${at.proxy}/list/..%2fx`),
  'a 404 of ours': () => status(`${at.proxy}/none`),
  'a 413 of ours': () => status(`${at.proxy}/small/echo`, { method: 'POST', body: 'hello' }),
  'a 431 of ours': () => status(`${at.proxy}/list/plain`, { headers: { 'X-Custom': 'x'.repeat(70000) } }),
  'a 502 of ours': () => status(`${at.proxy}/down/x`),
  'a 503 of ours': async () => {
    const held = await fetch(`${at.full}/hold`);
    const answer = await status(`${at.full}/plain`);
    await held.body.cancel();
    return answer;
  },
  'a 504 of ours': () => status(`${at.proxy}/slow/silent`),
  'an EventSource': () => events(`${at.proxy}/list/events`),
  'an EventSource with cookies': () => events(`${at.proxy}/list/events`, { withCredentials: true }),
  'a WebSocket': () => echoed(`${at.proxy.replace('http', 'ws')}/list/socket`),
  'a redirect': async () => {
    const response = await fetch(`${at.proxy}/list/redirect`);
    return `${await response.text()} ${response.redirected ? 'redirected' : 'at once'}`;
  },
  'the redirect to the final slash': async () => {
    const response = await fetch(`${at.proxy}/list?q`);
    return `${await response.text()} ${response.redirected ? 'redirected' : 'at once'}`;
  },
  'early hints before the answer': () => text(`${at.proxy}/list/early`),
  'raw characters in a query': () => asMeant(`${at.proxy}/list/target?a=\`^{}|[]\\'b"<>é %2F%zz`),
  'raw characters in a path': () => asMeant(`${at.proxy}/list/target/a|b[c]^{d}'e"f\`g;h=~é%2F%zz`),
});

const bounded = (check) =>
  Promise.race([
    check().catch(() => 'blocked'),
    new Promise((resolve) => setTimeout(() => resolve('timed out'), CHECK_LIMIT)),
  ]);

const main = async () => {
  const results = {};
  for (const [name, check] of Object.entries(checks(SETTING))) {
    results[name] = await bounded(check);
  }
  await fetch('/results', { method: 'POST', body: JSON.stringify(results) });
  if (SETTING.next) {
    location.href = SETTING.next;
  }
};

main();
