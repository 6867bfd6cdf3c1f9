// Jobs that a thread of their own does, one after the other, behind the caller's back.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

namespace smezo {

class Background {
 public:
  Background();
  ~Background();  // waits for the job that runs; the others are not done
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // Its number, from 1. The thread is started with the first one. After a job has thrown no other is done.
  int64_t run(std::function<void()> job);
  bool is_over(int64_t job) const;  // done, or never to be
  // Waits until it is over. Throws what a job has thrown.
  void wait(int64_t job);
  void wait_for_all();
  // Waits for the job that runs; those left are not done, and what was thrown is forgotten.
  void drop();

 private:
  struct State;
  std::unique_ptr<State> s_;
};

}  // namespace smezo
