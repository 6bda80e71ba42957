package main

import (
	"fmt"
	"io"
)

// row is a line of the table before it is measured.
type row struct {
	id      int
	title   string
	measure func(b *bench) (line, error)
}

// line is a line of the table.
type line struct {
	title  string
	peer   string // v0.5.16
	ours   string // this library
	beside string // measured in the same run: the limit, SQLite's backup API
	goal   string
	met    bool
}

func (l line) verdict() string {
	if l.met {
		return "goal met: " + l.ours + ", goal " + l.goal
	}
	return "GOAL MISSED: " + l.ours + ", goal " + l.goal
}

func printTable(w io.Writer, lines []line) {
	fmt.Fprintln(w, "| what | Litestream v0.5.16 | this library | beside them, in the same run | goal |")
	fmt.Fprintln(w, "|---|---|---|---|---|")
	for _, l := range lines {
		goal := l.goal
		if !l.met {
			goal += " (missed)"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", l.title, l.peer, l.ours, l.beside, goal)
	}
}

// tableRows are the rows in the order of the table.
var tableRows = []row{
	{1, "a writer at full speed: its throughput, of that without replication", saturatedWriter},
	{2, "a writer of 800 transactions a second: CPU per transaction, of that without replication", pacedWriter},
	{3, "a commit on an idle database is on the replica after, p50", loneCommit},
	{4, "one commit and a sync that waits for the replica, p50", syncAndWait},
	{5, "first snapshot of 559 MB", firstSnapshot},
	{6, "restore of 559 MB and 200 segments", largeRestore},
	{7, "restore of 8 MB and 2,000 segments of 500 WAL indexes", longRestore},
	{8, "100 idle databases: CPU time in 20 s", idleCPU},
	{9, "an idle database holds: goroutines, descriptors, memory", idleResources},
	{10, "a program that replicates: modules linked besides the library, size stripped", binarySize},
	{11, "peak memory of a program that restores either of the above", restoreMemory},
}
