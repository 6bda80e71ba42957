//go:build !race

package litestream

// RaceEnabled lets long tests do less under the race detector, which makes
// SQLite in Go ten times slower.
const RaceEnabled = false
