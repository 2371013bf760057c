// HyperDHT, with the roles and orders of bench/peers/harness.py. A connection is one stream; there are no others on it.
'use strict'
const net = require('net')
const readline = require('readline')
const { performance } = require('perf_hooks')
const DHT = require('hyperdht')
const createTestnet = require('hyperdht/testnet')

const MESSAGE = 64
const AT_ONCE = 64
const WARM_UP = 100
const CHUNK = Buffer.alloc(1 << 18)
const [SINK, SOURCE, ECHO, TCP] = [...'BDET'].map((c) => c.charCodeAt(0))

const say = (what) => process.stdout.write(JSON.stringify(what) + '\n')
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
class Missing extends Error {}

// Bytes of a stream, by number.
class Reader {
  constructor (stream) {
    this.parts = []
    this.have = 0
    this.waiting = null
    this.error = null
    stream.on('data', (data) => {
      this.parts.push(data)
      this.have += data.length
      this.serve()
    })
    for (const name of ['error', 'end', 'close']) {
      stream.on(name, (error) => {
        this.error = error || new Error('the stream ended')
        this.serve()
      })
    }
  }

  serve () {
    const waiting = this.waiting
    if (waiting === null) return
    if (this.have >= waiting.count) {
      this.waiting = null
      waiting.resolve(this.take(waiting.count))
    } else if (this.error) {
      this.waiting = null
      waiting.reject(this.error)
    }
  }

  take (count) {
    const all = this.parts.length === 1 ? this.parts[0] : Buffer.concat(this.parts)
    this.parts = all.length > count ? [all.subarray(count)] : []
    this.have = all.length - count
    return all.subarray(0, count)
  }

  exactly (count) {
    if (this.have >= count) return this.take(count)
    return new Promise((resolve, reject) => {
      this.waiting = { count, resolve, reject }
      this.serve()
    })
  }

  async skip (count) {
    while (count > 0) {
      const part = Math.max(1, Math.min(count, this.have))
      count -= (await this.exactly(part)).length
    }
  }
}

const drained = (stream) => new Promise((resolve) => stream.once('drain', resolve))

async function send (stream, data) {
  if (!stream.write(data)) await drained(stream)
}

const count64 = (bytes) => {
  const text = Buffer.alloc(8)
  text.writeBigUInt64BE(BigInt(bytes))
  return text
}

async function serve (socket) {
  socket.on('error', () => {})
  const reader = new Reader(socket)
  const first = (await reader.exactly(1))[0]
  if (first === SINK) {
    await reader.skip(Number((await reader.exactly(8)).readBigUInt64BE()))
    socket.write(Buffer.from([SINK]))
  } else if (first === SOURCE) {
    for (let rest = Number((await reader.exactly(8)).readBigUInt64BE()); rest > 0; rest -= CHUNK.length) await send(socket, CHUNK)
  } else if (first === TCP) {
    const port = (await reader.exactly(2)).readUInt16BE()
    const near = net.connect({ port, host: '127.0.0.1', noDelay: true })
    pair(reader, socket, near)
    return
  }
  for (;;) socket.write(await reader.exactly(Math.max(1, reader.have)))
}

// What has been read ahead goes first; then both directions flow.
function pair (reader, far, near) {
  const end = () => { far.destroy(); near.destroy() }
  for (const stream of [far, near]) stream.on('error', end).on('close', end)
  far.removeAllListeners('data')
  if (reader && reader.have) near.write(reader.take(reader.have))
  far.on('data', (data) => near.write(data) || (far.pause(), near.once('drain', () => far.resume())))
  near.on('data', (data) => far.write(data) || (near.pause(), far.once('drain', () => near.resume())))
}

async function connect (node, key) {
  const socket = node.connect(Buffer.from(key, 'hex'))
  socket.on('error', () => {})
  await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject))
  return socket
}

const bootstrap = (at) => [{ host: at.split(' ')[0].split(':')[0], port: Number(at.split(' ')[0].split(':')[1]) }]
const keyOf = (at) => at.split(' ')[1]

function client (at) {
  const local = at.startsWith('127.')
  return new DHT({ bootstrap: bootstrap(at), ephemeral: true, host: local ? '127.0.0.1' : '0.0.0.0' })
}

const orders = {
  async connect ({ at }) {
    this.node = client(at)
    this.open = () => connect(this.node, keyOf(at))
    await orders.echo({ count: 100 })
    return {}
  },
  async through ({ at, port }) {
    const node = client(at)
    const server = net.createServer({ noDelay: true }, async (near) => {
      near.on('error', () => {})
      near.pause()
      const far = await connect(node, keyOf(at))
      far.write(Buffer.from([TCP, port >> 8, port & 255]))
      pair(null, far, near)
      near.resume()
    })
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
    const near = server.address().port
    this.open = () => new Promise((resolve, reject) => {
      const socket = net.connect({ port: near, host: '127.0.0.1', noDelay: true }, () => resolve(socket))
      socket.on('error', reject)
    })
    await orders.echo({ count: 100 })
    return {}
  },
  async echo ({ count }) {
    const stream = await orders.open()
    const reader = new Reader(stream)
    const times = []
    stream.write(Buffer.from([ECHO]))
    for (let n = 0; n < count + WARM_UP; n++) {
      const started = performance.now()
      stream.write(Buffer.alloc(MESSAGE))
      await reader.exactly(MESSAGE)
      if (n >= WARM_UP) times.push((performance.now() - started) * 1000)
    }
    stream.destroy()
    times.sort((a, b) => a - b)
    return { p50: times[times.length >> 1], p99: times[Math.floor(times.length * 0.99)], done: count + WARM_UP }
  },
  async up ({ megabytes }) {
    const stream = await orders.open()
    const reader = new Reader(stream)
    const started = performance.now()
    stream.write(Buffer.concat([Buffer.from([SINK]), count64(megabytes << 20)]))
    for (let n = 0; n < megabytes * 4; n++) await send(stream, CHUNK)
    await reader.exactly(1)
    const took = performance.now() - started
    stream.destroy()
    return { MBps: megabytes * 1048.576 / took }
  },
  async down ({ megabytes }) {
    const stream = await orders.open()
    const reader = new Reader(stream)
    const started = performance.now()
    stream.write(Buffer.concat([Buffer.from([SOURCE]), count64(megabytes << 20)]))
    await reader.skip(megabytes << 20)
    const took = performance.now() - started
    stream.destroy()
    return { MBps: megabytes * 1048.576 / took }
  },
  async at_once ({ count }) {
    const stream = await orders.open()
    const reader = new Reader(stream)
    const message = Buffer.alloc(MESSAGE)
    stream.write(Buffer.from([ECHO]))
    const started = performance.now()
    for (let n = 0; n < AT_ONCE; n++) stream.write(message)
    for (let n = 0; n < count; n++) {
      await reader.exactly(MESSAGE)
      if (n < count - AT_ONCE) stream.write(message)
    }
    const took = performance.now() - started
    stream.destroy()
    return { per_s: count * 1000 / took }
  },
  async each () {
    throw new Missing('a connection is one stream')
  },
  async handshakes ({ at, count, at_once: atOnce }) {
    const node = client(at)
    const some = async (number) => {
      for (let n = 0; n < number; n++) (await connect(node, keyOf(at))).destroy()
    }
    const all = (number) => Promise.all(Array.from({ length: atOnce }, () => some(number)))
    await all(2)
    const each = Math.floor(count / atOnce)
    const started = performance.now()
    await all(each)
    return { per_s: each * atOnce * 1000 / (performance.now() - started) }
  },
  async hold ({ at, count }) {
    this.holder = this.holder || client(at)
    this.held = this.held || []
    while (this.held.length < count) this.held.push(await connect(this.holder, keyOf(at)))
    return {}
  },
  async peers ({ at, count }) {
    this.held = this.held || []
    for (let n = 0; n < count; n++) {
      const stream = await connect(client(at), keyOf(at))
      stream.write(Buffer.from([ECHO, 0]))
      await new Reader(stream).exactly(1)
      this.held.push(stream)
    }
    return {}
  },
  async dial ({ at }) {
    const node = client(at)
    await node.fullyBootstrapped()
    const times = []
    for (let n = 0; n < 2; n++) {
      const started = performance.now()
      const socket = await connect(node, keyOf(at))
      times.push(performance.now() - started)
      socket.destroy()
      await sleep(100)
    }
    return { cold: times[0], known: times[1] }
  },
  async beat () {
    const stream = await orders.open()
    const reader = new Reader(stream)
    const beat = { sent: 0, back: 0, gap: 0, last: performance.now(), error: '' }
    this.beats = beat
    stream.write(Buffer.from([ECHO]))
    setInterval(() => { stream.write(count64(beat.sent++)) }, 10)
    const read = async () => {
      for (;;) {
        await reader.exactly(8)
        const now = performance.now()
        beat.back++
        beat.gap = Math.max(beat.gap, now - beat.last)
        beat.last = now
      }
    }
    read().catch((error) => { beat.error = String(error) })
    return {}
  },
  async reset () {
    Object.assign(this.beats, { gap: 0, last: performance.now() })
    return {}
  },
  async gap () {
    const beat = this.beats
    return { gap_ms: Math.max(beat.gap, performance.now() - beat.last), in_flight: beat.sent - beat.back, error: beat.error }
  }
}

async function target () {
  const server = net.createServer({ noDelay: true }, (socket) => { serve(socket).catch(() => {}) })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  return server.address().port
}

async function listen (host, size) {
  const testnet = await createTestnet(size, { host })
  const server = testnet.nodes[size - 1].createServer()
  server.on('connection', (socket) => { serve(socket).catch(() => {}) })
  await server.listen(DHT.keyPair())
  const first = testnet.bootstrap[0]
  say({ at: `${first.host}:${first.port} ${server.publicKey.toString('hex')}`, port: await target() })
}

async function main () {
  const [role, at] = process.argv.slice(2)
  const lines = readline.createInterface({ input: process.stdin })
  if (role === 'serve') await listen(at, 2)
  else if (role === 'dht') await listen('127.0.0.1', 8)
  else if (role === 'first') {
    const stream = await connect(client(at), keyOf(at))
    const reader = new Reader(stream)
    stream.write(Buffer.from([ECHO, 0]))
    await reader.exactly(1)
    say({ echo: true })
    process.exit(0)
  }
  for await (const line of lines) {
    const { do: name, ...order } = JSON.parse(line)
    try {
      say(await orders[name](order))
    } catch (error) {
      say(error instanceof Missing ? { missing: error.message } : { error: String(error) })
    }
  }
  process.exit(0)
}

main()
