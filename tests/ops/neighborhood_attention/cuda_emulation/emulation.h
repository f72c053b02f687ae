// cuda_device.cuh on a CPU: the kernels run unchanged, every thread of a block as a fiber that stops where they meet.
//
// Blocks run one after the other. A schedule runs the threads of a block in rising or falling order, and copies either
// at once or as late as they may be: a missing barrier gives a wrong result under one of them. Shared memory starts as
// NaN and ends in a guard. Threads that meet at different places, or never, and misaligned words are errors.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define DEVICE inline
#define KERNEL(min_blocks) void
#define CONSTANT const

namespace vantage::cuda {

struct Schedule {
  bool falling = false, late_copies = false;
};
using Stream = Schedule;

class Machine {
 public:
  int thread = 0, block = 0, blocks = 0;
  char* shared = nullptr;
  Schedule schedule;

  template <class Body>
  void run_block(Body body) {
    static std::vector<std::unique_ptr<char[]>> stacks(THREADS);
    call_ = [](void* of) { (*static_cast<Body*>(of))(); };
    body_ = &body;
    for (int i = 0; i < THREADS; ++i) {
      fibers_[i] = Fiber{};
      if (!stacks[i]) stacks[i].reset(new char[STACK]);
      getcontext(&fibers_[i].context);
      fibers_[i].context.uc_stack.ss_sp = stacks[i].get();
      fibers_[i].context.uc_stack.ss_size = STACK;
      makecontext(&fibers_[i].context, &Machine::enter, 0);
    }
    while (run_all()) {
    }
    for (const Fiber& fiber : fibers_)
      if (!fiber.is_done) throw std::runtime_error(std::string("threads wait for ever in ") + fiber.place);
  }

  void meet_block(const char* place) { meet(place, true); }
  void meet_warp(const char* place) { meet(place, false); }

  // What the 32 lanes of the warp gave
  template <class T>
  const T* exchange(const char* place, const T& value) {
    static_assert(sizeof(T) <= SLOT);
    char* slots = slots_[thread / 32][fibers_[thread].exchanges++ % 2];
    std::memcpy(slots + thread % 32 * sizeof(T), &value, sizeof(T));
    meet_warp(place);
    return reinterpret_cast<const T*>(slots);
  }

  void copy(void* to, const void* from) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
      throw std::runtime_error("a copy of 16 bytes is misaligned");
    if (schedule.late_copies)
      fibers_[thread].copies.push_back({to, from});
    else
      std::memcpy(to, from, 16);
  }
  void finish_copies() {
    for (auto [to, from] : fibers_[thread].copies) std::memcpy(to, from, 16);
    fibers_[thread].copies.clear();
  }

 private:
  static constexpr size_t STACK = 128 * 1024, SLOT = 32;
  struct Fiber {
    ucontext_t context;  // to start in; to go on, jump, which unlike swapcontext calls no kernel
    jmp_buf jump;
    bool is_started = false, is_waiting = false, for_block = false, is_done = false;
    const char* place = "";
    unsigned exchanges = 0;
    std::vector<std::pair<void*, const void*>> copies;
  };
  Fiber fibers_[THREADS];
  jmp_buf scheduler_;
  alignas(16) char slots_[WARPS][2][32 * SLOT];
  void (*call_)(void*);
  void* body_;
  std::string error_;

  static void enter();

  void meet(const char* place, bool for_block) {
    Fiber& fiber = fibers_[thread];
    fiber.is_waiting = true, fiber.for_block = for_block, fiber.place = place;
    if (_setjmp(fiber.jump) == 0) _longjmp(scheduler_, 1);
  }

  void go_on(Fiber& fiber) {
    if (_setjmp(scheduler_) != 0) return;  // it met others, or ended
    if (fiber.is_started) _longjmp(fiber.jump, 1);
    fiber.is_started = true;
    setcontext(&fiber.context);
  }

  // Runs whoever can run; false when nobody could
  bool run_all() {
    bool any = false;
    for (int i = 0; i < THREADS; ++i) {
      thread = schedule.falling ? THREADS - 1 - i : i;
      Fiber& fiber = fibers_[thread];
      if (fiber.is_done || fiber.is_waiting) continue;
      any = true;
      go_on(fiber);
      if (!error_.empty()) throw std::runtime_error(std::exchange(error_, ""));
      release(fiber.is_done ? true : fiber.for_block);
    }
    return any;
  }

  // Lets the threads go on once all of the block, or of the warp, wait in the same place
  void release(bool of_block) {
    const int from = of_block ? 0 : thread / 32 * 32, to = of_block ? THREADS : from + 32;
    const char* place = nullptr;
    for (int i = from; i < to; ++i) {
      const Fiber& fiber = fibers_[i];
      if (fiber.is_done) continue;
      if (!fiber.is_waiting || fiber.for_block != of_block) return;
      if (place && place != fiber.place) throw std::runtime_error(std::string("threads diverge at ") + place);
      place = fiber.place;
    }
    for (int i = from; i < to; ++i) fibers_[i].is_waiting = false;
  }
};

inline Machine machine;

inline void Machine::enter() {
  try {
    machine.call_(machine.body_);
  } catch (const std::exception& error) {
    machine.error_ = error.what();
  }
  machine.fibers_[machine.thread].is_done = true;
  _longjmp(machine.scheduler_, 1);
}

inline int thread_index() { return machine.thread; }
inline int block_index() { return machine.block; }
inline int block_count() { return machine.blocks; }
inline char* shared_memory() { return machine.shared; }

inline void sync_block() { machine.meet_block("sync_block"); }
inline void sync_warp() { machine.meet_warp("sync_warp"); }
inline float shuffle_xor(float value, int mask) {
  const int lane = machine.thread % 32;
  return machine.exchange("shuffle_xor", value)[lane ^ mask];
}
inline uint32_t shuffle(uint32_t value, int lane) { return machine.exchange("shuffle", value)[lane]; }
inline uint32_t or_over_warp(uint32_t value) {
  const uint32_t* values = machine.exchange("or_over_warp", value);
  uint32_t all = 0;
  for (int lane = 0; lane < 32; ++lane) all |= values[lane];
  return all;
}

inline float exp2_of(float x) { return std::exp2(x); }
inline float log2_of(float x) { return std::log2(x); }
inline float read_only(const float* at) { return *at; }
inline void copy_16_bytes(void* to, const void* from) { machine.copy(to, from); }
inline void wait_copies() { machine.finish_copies(); }

inline void read_matrices(uint32_t (&to)[4], const void* row, bool is_transposed) {
  const int lane = machine.thread % 32, g = lane / 4, t = lane % 4;
  if (reinterpret_cast<uintptr_t>(row) % 16) throw std::runtime_error("a row of a matrix is misaligned");
  const auto* rows = machine.exchange("load_matrices", static_cast<const uint16_t*>(row));
  for (int i = 0; i < 4; ++i) {
    const uint16_t low = is_transposed ? rows[8 * i + 2 * t][g] : rows[8 * i + g][2 * t];
    const uint16_t high = is_transposed ? rows[8 * i + 2 * t + 1][g] : rows[8 * i + g][2 * t + 1];
    to[i] = low | uint32_t(high) << 16;
  }
}
inline void load_matrices(uint32_t (&to)[4], const void* row) { read_matrices(to, row, false); }
inline void load_transposed_matrices(uint32_t (&to)[4], const void* row) { read_matrices(to, row, true); }

inline float to_float(float x) { return x; }
inline float to_float(BFloat x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline float to_float(Half x) {
  _Float16 y;
  std::memcpy(&y, &x.bits, 2);
  return y;
}
inline uint32_t bits_of(float x, BFloat) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
}
inline uint32_t bits_of(float x, Half) {
  const _Float16 y = x;
  uint16_t bits;
  std::memcpy(&bits, &y, 2);
  return bits;
}
template <class T>
uint32_t pack(float low, float high, T type) {
  return bits_of(low, type) | bits_of(high, type) << 16;
}

// As the PTX manual lays the operands of mma.m16n8k16 out
template <class T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const Operands* lanes = machine.exchange("multiply_add", Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int g = machine.thread % 32 / 4, t = machine.thread % 4;
  const auto element = [](uint32_t both, int k) { return to_float(T{uint16_t(k % 2 ? both >> 16 : both)}); };
  for (int k = 0; k < 16; ++k) {
    const int half = k / 8, lane = k % 8 / 2;
    for (int e = 0; e < 4; ++e)
      sum[e] += element(lanes[4 * g + lane].a[2 * half + e / 2], k) *
                element(lanes[4 * (2 * t + e % 2) + lane].b[half], k);
  }
}

template <class Arguments>
void launch(void (*kernel)(Arguments), Arguments arguments, int blocks, size_t shared_bytes, Stream schedule) {
  constexpr size_t GUARD = 256;
  std::vector<char> storage(shared_bytes + GUARD + 16);
  char* shared = storage.data() + (16 - reinterpret_cast<uintptr_t>(storage.data()) % 16) % 16;
  machine.schedule = schedule, machine.blocks = blocks, machine.shared = shared;
  for (machine.block = 0; machine.block < blocks; ++machine.block) {
    std::memset(shared, 0xff, shared_bytes + GUARD);
    machine.run_block([&] { kernel(arguments); });
    for (size_t i = 0; i < GUARD; ++i)
      if (shared[shared_bytes + i] != char(0xff)) throw std::runtime_error("a write past the end of shared memory");
  }
}

}  // namespace vantage::cuda
