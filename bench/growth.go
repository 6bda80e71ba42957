package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"time"
)

// curve is how one figure grows.
type curve struct {
	name   string
	unit   string // of y
	points []point
}

// point is what was measured at x.
type point struct {
	x float64
	y samples
}

// panel is one chart: curves over the same x.
type panel struct {
	title  string // of the chart
	x      string // what x is
	curves []curve
}

// growths are the measurements of growth, in order.
var growths = []func(b *bench) ([]panel, error){
	(*bench).growBySize, (*bench).growBySegments, (*bench).growByDatabases,
}

// measureGrowth measures how this library's cost grows.
func (b *bench) measureGrowth() error {
	var panels []panel
	for _, grow := range growths {
		ps, err := grow(b)
		if err != nil {
			return fmt.Errorf("growth: %w", err)
		}
		panels = append(panels, ps...)
	}
	if b.chart != "" {
		if err := os.WriteFile(b.chart, drawPanels(panels), 0o644); err != nil {
			return err
		}
	}
	var tables bytes.Buffer
	for _, p := range panels {
		printPanel(&tables, p)
	}
	return b.report("growth", tables.Bytes())
}

// printPanel prints the numbers of a panel.
func printPanel(w io.Writer, p panel) {
	fmt.Fprintf(w, "| %s |", p.x)
	for _, c := range p.curves {
		fmt.Fprintf(w, " %s, %s |", c.name, c.unit)
	}
	fmt.Fprint(w, "\n|---|")
	for range p.curves {
		fmt.Fprint(w, "---|")
	}
	fmt.Fprintln(w)
	for i := range p.curves[0].points {
		fmt.Fprintf(w, "| %.0f |", p.curves[0].points[i].x)
		for _, c := range p.curves {
			fmt.Fprintf(w, " %s |", c.points[i].y)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
}

func (c *curve) add(x float64, y samples) { c.points = append(c.points, point{x, y}) }

// growBySize measures snapshots and restores of databases of 10 MB to 2 GB.
func (b *bench) growBySize() ([]panel, error) {
	snapshot := curve{name: "first snapshot", unit: "s"}
	restore := curve{name: "restore", unit: "s"}
	memory := curve{name: "restore's peak memory", unit: "MB"}
	for _, mb := range []float64{10, 40, 160, 640, 2000} {
		f := fixture{size: max(int64(mb*1e6*b.scale), smallest), segments: 1, group: 1, rows: 1}
		b.logf("== database of %s MB", short(float64(f.size)/1e6))
		path, err := b.database(f.size, ours)
		if err != nil {
			return nil, err
		}
		replica, err := b.history(f, ours)
		if err != nil {
			return nil, err
		}
		got, err := b.compare(
			contender{"snapshot", func() (metrics, error) {
				return b.run(job{Kind: "snapshot", System: ours, Database: path})
			}},
			contender{"restore", func() (metrics, error) {
				return b.run(job{Kind: "restore", System: ours, Replica: replica, N: f.segments})
			}},
			b.peakContender(replica))
		if err != nil {
			return nil, err
		}
		x := got.get("snapshot", "bytes").median() / 1e6
		snapshot.add(x, got.get("snapshot", "s"))
		restore.add(x, got.get("restore", "s"))
		memory.add(x, got.get("memory", "MB"))
	}
	return []panel{{"A larger database", "database, MB", []curve{snapshot, restore}}, {"Memory and the size of the database", "database, MB", []curve{memory}}}, nil
}

// peakContender runs the program that restores, for its peak memory.
func (b *bench) peakContender(replica string) contender {
	return contender{"memory", func() (metrics, error) {
		program, err := b.build("ours")
		if err != nil {
			return nil, err
		}
		peak, err := b.peakOfRestore(program, replica)
		return metrics{"MB": peak / 1e6}, err
	}}
}

// growBySegments measures restores of 500 to 8,000 segments.
func (b *bench) growBySegments() ([]panel, error) {
	restore := curve{name: "restore of 8 MB", unit: "s"}
	memory := curve{name: "restore's peak memory", unit: "MB"}
	for _, n := range []int{500, 1000, 2000, 4000, 8000} {
		f := b.long()
		f.segments = b.scaled(n, n/125)
		b.logf("== %d segments", f.segments)
		replica, err := b.history(f, ours)
		if err != nil {
			return nil, err
		}
		got, err := b.compare(
			contender{"restore", func() (metrics, error) {
				return b.run(job{Kind: "restore", System: ours, Replica: replica, N: f.segments})
			}},
			b.peakContender(replica))
		if err != nil {
			return nil, err
		}
		restore.add(float64(f.segments), got.get("restore", "s"))
		memory.add(float64(f.segments), got.get("memory", "MB"))
	}
	return []panel{{"A longer history", "segments", []curve{restore}}, {"Memory and the length of the history", "segments", []curve{memory}}}, nil
}

// growByDatabases measures 1 to 1,000 databases in one process.
func (b *bench) growByDatabases() ([]panel, error) {
	open := curve{name: "open all", unit: "s"}
	memory := curve{name: "memory for each", unit: "KB"}
	idle := curve{name: "CPU in 20 s while idle", unit: "s"}
	busy := curve{name: "replication", unit: "cores"}
	host := curve{name: "the program alone", unit: "cores"}
	for _, n := range []int{1, 10, 100, 1000} {
		n := b.scaled(n, 1)
		duration := b.lasting(20*time.Second, 300*time.Millisecond)
		b.logf("== %d databases", n)
		got, err := b.compare(
			contender{"idle", func() (metrics, error) {
				return b.run(job{Kind: "idle", System: ours, N: n, Duration: duration})
			}},
			contender{alone, func() (metrics, error) {
				return b.run(job{Kind: "writemany", System: alone, N: n, Duration: duration})
			}},
			contender{ours, func() (metrics, error) {
				return b.run(job{Kind: "writemany", System: ours, N: n, Duration: duration})
			}})
		if err != nil {
			return nil, err
		}
		x := float64(n)
		open.add(x, got.get("idle", "open-s"))
		memory.add(x, got.get("idle", "memory-KB/db"))
		idle.add(x, got.get("idle", "idle-cpu-s"))
		busy.add(x, got.get(ours, "cores").minus(got.get(alone, "cores")))
		host.add(x, got.get(alone, "cores"))
	}
	return []panel{
		{"More databases", "databases", []curve{open, idle}},
		{"More databases that commit once a second", "databases", []curve{busy, host}},
		{"Memory and the number of databases", "databases", []curve{memory}},
	}, nil
}
