// Noise of a seed as torch draws it on the CPU: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).
// Source: PyTorch (BSD-3), ATen/core/MT19937RNGEngine.h, DistributionsHelper.h, native/cpu/DistributionTemplates.h.

const N = 624, M = 397; // of the Mersenne twister MT19937

class Twister {
  constructor(seed) {
    this.state = new Uint32Array(N);
    this.state[0] = seed >>> 0;
    for (let i = 1; i < N; i++) {
      const s = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, s) + i;
    }
    this.place = N;
  }

  next() {
    if (this.place === N) this.twist();
    let y = this.state[this.place++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  twist() {
    const s = this.state;
    for (let i = 0; i < N; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % N] & 0x7fffffff);
      s[i] = s[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.place = 0;
  }

  // 24 bits, as a float32 in [0, 1)
  float() { return (this.next() & 0xffffff) / 2 ** 24; }

  // 53 bits of two draws, the first of them the upper ones
  double() {
    const high = this.next(), low = this.next();
    return ((high & 0x1fffff) * 2 ** 32 + low) / 2 ** 53;
  }
}

// Box-Muller on 16 uniforms in place: the first 8 give radii, the last 8 angles.
function transform(x, start) {
  for (let j = start; j < start + 8; j++) {
    const radius = Math.fround(Math.sqrt(-2 * Math.fround(Math.log(1 - x[j]))));
    const angle = Math.fround(2 * Math.PI * x[j + 8]);
    x[j] = radius * Math.cos(angle);
    x[j + 8] = radius * Math.sin(angle);
  }
}

function many(twister, size) {
  const x = new Float32Array(size);
  for (let i = 0; i < size; i++) x[i] = twister.float();
  for (let i = 0; i + 16 <= size; i += 16) transform(x, i);
  if (size % 16) { // the last 16 are drawn anew
    for (let i = size - 16; i < size; i++) x[i] = twister.float();
    transform(x, size - 16);
  }
  return x;
}

function few(twister, size) {
  const x = new Float32Array(size);
  for (let i = 0; i < size; i += 2) {
    const angle = 2 * Math.PI * twister.double(), radius = Math.sqrt(-2 * Math.log1p(-twister.double()));
    x[i] = radius * Math.cos(angle);
    if (i + 1 < size) x[i + 1] = radius * Math.sin(angle);
  }
  return x;
}

// Standard normal noise, float32, of a seed 0 .. 2^32 - 1.
export function noise(seed, size) {
  const twister = new Twister(seed);
  return size < 16 ? few(twister, size) : many(twister, size);
}

// Spherical interpolation from a (share 0) to b (share 1). Source: K. Shoemake, SIGGRAPH 1985.
export function slerp(a, b, share) {
  let dot = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) { dot += a[i] * b[i]; aa += a[i] * a[i]; bb += b[i] * b[i]; }
  const angle = Math.acos(Math.max(-1, Math.min(1, dot / Math.sqrt(aa * bb || 1))));
  const sine = Math.sin(angle), straight = sine < 1e-6;
  const p = straight ? 1 - share : Math.sin((1 - share) * angle) / sine;
  const q = straight ? share : Math.sin(share * angle) / sine;
  return a.map((value, i) => p * value + q * b[i]);
}
