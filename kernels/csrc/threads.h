// A pool of threads for the loops of kernels. Whoever calls computes too, and waits for nobody who has not begun.
//
// Sharing  A loop is cut into a few chunks for each thread, and threads take one after another: one that the system has
//          put aside keeps the others from nothing but the chunk it is in.
// Waiting  Between two loops of one step a thread spins for a moment, because waking it takes longer than most loops;
//          then it sleeps, so that an idle server costs nothing.
// Bits     A chunk is made of whole results: who computes it never changes how.

#pragma once

#include <algorithm>
#include <functional>

namespace ps {

// Call body(begin, end) on chunks that cover [0, n), whose bounds are multiples of grain, by at most `threads` threads.
void parallel(long n, long grain, int threads, const std::function<void(long, long)>& body);

}  // namespace ps
