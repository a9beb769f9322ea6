//! The solvers against brute force, against each other and against an independent solver.
