// The network in this browser: onnxruntime-web on WebGPU where there is one, else WebAssembly.

const RUNTIMES = {
  webgpu: { code: "ort.webgpu.min.mjs", glue: "ort-wasm-simd-threaded.asyncify.mjs", binary: "ort-wasm-simd-threaded.asyncify.wasm" },
  wasm: { code: "ort.wasm.min.mjs", glue: "ort-wasm-simd-threaded.mjs", binary: "ort-wasm-simd-threaded.wasm" },
};

async function bytes(name) {
  const reply = await fetch(new URL(name, import.meta.url));
  if (!reply.ok) throw new Error(`${name} could not be loaded (${reply.status})`);
  return reply;
}

// The binary, unpacked here: packed it is a quarter, whatever the server can do.
async function unpacked(name) {
  const packed = await (await bytes(`runtime/${name}.packed`)).arrayBuffer();
  const head = new Uint8Array(packed, 0, 2);
  if (head[0] !== 0x1f || head[1] !== 0x8b) return packed; // a server has unpacked it
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function runtime(kind) {
  const files = RUNTIMES[kind];
  const [ort, binary] = await Promise.all([import(`./runtime/${files.code}`), unpacked(files.binary)]);
  ort.env.wasm.wasmPaths = { mjs: new URL(`runtime/${files.glue}`, import.meta.url).href };
  ort.env.wasm.wasmBinary = binary;
  // Threads need shared memory, which only isolated pages have.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.logLevel = "error";
  return ort;
}

// A graphics card. Some browsers offer a processor that plays one, which is far slower than WebAssembly.
async function card(evenPlayed) {
  try {
    const found = await navigator.gpu?.requestAdapter();
    return Boolean(found && (evenPlayed || !(found.info?.isFallbackAdapter ?? found.isFallbackAdapter)));
  } catch { return false; }
}

export class Network {
  constructor(about, kind, ort, field, decoder) {
    Object.assign(this, { about, kind, ort, field, decoder, size: about.shape.reduce((a, b) => a * b, 1), last: Promise.resolve() });
  }

  static async load(about) {
    const wanted = new URLSearchParams(location.search).get("run-on");
    const gpu = about.runtimes.includes("webgpu") && wanted !== "wasm" && (await card(wanted === "webgpu"));
    if (!gpu) return Network.on("wasm", about);
    try { return await Network.on("webgpu", about); } catch (error) {
      console.warn("WebGPU did not work, so WebAssembly is used:", error);
      return Network.on("wasm", about);
    }
  }

  static async on(kind, about) {
    const models = ["field.onnx", ...(about.decoder ? ["decoder.onnx"] : [])].map(async (name) => (await bytes(name)).arrayBuffer());
    const [ort, ...files] = await Promise.all([runtime(kind), ...models]);
    const sessions = [];
    for (const file of files) sessions.push(await ort.InferenceSession.create(file, { executionProviders: [kind], logSeverityLevel: 3 }));
    return new Network(about, kind, ort, ...sessions);
  }

  // Work when all before it has ended, and its own milliseconds. On WebGPU, a run that begins inside another blocks the page.
  alone(work) {
    const done = this.last.then(async () => {
      const start = performance.now(), result = await work();
      return [result, performance.now() - start];
    });
    this.last = done.catch(() => null);
    return done;
  }

  // u(z, r, t) for rows of z, one after the other in a Float32Array; t and r are numbers for all rows.
  async u(z, t, r, label) {
    const rows = z.length / this.size, ort = this.ort;
    const inputs = {
      z: new ort.Tensor("float32", z, [rows, ...this.about.shape]),
      t: new ort.Tensor("float32", new Float32Array(rows).fill(t), [rows]),
      r: new ort.Tensor("float32", new Float32Array(rows).fill(r), [rows]),
    };
    if (this.about.classes !== null) {
      inputs.labels = new ort.Tensor("int64", new BigInt64Array(rows).fill(BigInt(label)), [rows]);
    }
    return (await this.field.run(inputs)).u.getData();
  }

  // z_r = z_t - (t - r) u(z_t, r, t), arXiv:2505.13447 eq. 12
  async move(z, t, r, label) {
    const u = await this.u(z, t, r, label);
    return z.map((value, i) => value - Math.fround((t - r) * u[i]));
  }

  // One call, and its milliseconds.
  jump(z, t, r, label) { return this.alone(() => this.move(z, t, r, label)); }

  // Samples from noise in so many calls at equal intervals, decoded where they are latents, and their milliseconds.
  sample(noise, calls, label) {
    return this.alone(async () => {
      let z = noise;
      for (let i = calls; i > 0; i--) z = await this.move(z, i / calls, (i - 1) / calls, label);
      return this.decoder ? this.decode(z) : z;
    });
  }

  async decode(latents) {
    const rows = latents.length / this.size;
    const input = new this.ort.Tensor("float32", latents, [rows, ...this.about.shape]);
    return (await this.decoder.run({ latents: input })).images.getData();
  }
}
