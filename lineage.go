package litestream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// lineage remembers which generations a manager began or accepted on each of
// its replicas, so that it notices when another one writes there: a follower
// was promoted, and the old primary comes back. Names decide, not clocks.
//
// A manager without a lineage accepts what it finds: it is new, restored, or
// promoted. The same goes for a replica that it never wrote to, such as one that
// was added. From then on a generation that is not known is another's. The
// name of an own one is stored before anything of it is uploaded.
//
// The file has a line for each generation, oldest first: its name and that of
// the replica, quoted.
type lineage struct {
	fs   fsys.FS
	name string

	mu struct {
		sync.Mutex // held while the file is read or written; nothing is locked under it
		loaded     bool
		replicas   map[string][]string // generations by replica, oldest first
	}
}

// maxLineage is how many generations of a replica are remembered that it no
// longer lists: a listing may be stale.
const maxLineage = 64

// accept notes the current generation and what a replica lists, and returns
// what it does not accept: generations of another manager.
func (l *lineage) accept(replica string, listed []string, current string) (foreign []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("lineage: %w", err)
	}
	known := func(generation string) bool {
		if generation == current {
			return true
		}
		for _, names := range l.mu.replicas {
			if slices.Contains(names, generation) {
				return true
			}
		}
		return false
	}
	if _, seen := l.mu.replicas[replica]; seen {
		foreign = slices.DeleteFunc(slices.Clone(listed), known)
		listed = slices.DeleteFunc(slices.Clone(listed), func(s string) bool { return !known(s) })
	}
	names := slices.Clone(l.mu.replicas[replica])
	for _, s := range append(slices.Clone(listed), current) {
		if s != "" && !slices.Contains(names, s) {
			names = append(names, s)
		}
	}
	for excess := len(names) - maxLineage; excess > 0; excess-- {
		i := slices.IndexFunc(names, func(s string) bool { return s != current && !slices.Contains(listed, s) })
		if i < 0 {
			break
		}
		names = slices.Delete(names, i, i+1)
	}
	if slices.Equal(names, l.mu.replicas[replica]) {
		return foreign, nil
	}
	if err := l.store(replica, names); err != nil {
		return nil, fmt.Errorf("lineage: %w", err)
	}
	l.mu.replicas[replica] = names
	return foreign, nil
}

// load reads the file unless that was done, and makes it durable: its writer may
// have been killed before. mu is locked.
func (l *lineage) load() error {
	if l.mu.loaded {
		return nil
	}
	b, err := readFile(l.fs, l.name)
	if err == nil {
		err = l.fs.SyncDir(filepath.Dir(l.name))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	replicas := make(map[string][]string)
	for line := range strings.Lines(string(b)) {
		generation, quoted, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		replica, err := strconv.Unquote(quoted)
		if err != nil || !IsGenerationName(generation) {
			tracef("%s: unexpected line %q", l.name, line)
			clear(replicas) // like a manager without one
			break
		}
		replicas[replica] = append(replicas[replica], generation)
	}
	l.mu.replicas, l.mu.loaded = replicas, true
	return nil
}

// store replaces the file, durably, with other names for one replica. mu is
// locked.
func (l *lineage) store(replica string, names []string) error {
	var b strings.Builder
	write := func(replica string, names []string) {
		for _, s := range names {
			fmt.Fprintf(&b, "%s %s\n", s, strconv.Quote(replica))
		}
	}
	for other, generations := range l.mu.replicas {
		if other != replica {
			write(other, generations)
		}
	}
	write(replica, names)
	opt := metaFile
	opt.Durable = true
	return atomicfile.WriteBytes(l.fs, l.name, opt, []byte(b.String()))
}

// checkLineage returns an error that matches ErrReplicaMoved if another manager
// writes to the replica, which lists these generations. Else the current one is
// noted as the DB's own when it returns. A generation without a snapshot is the
// rubbish of a crash, or does not exist yet.
func (r *Replica) checkLineage(ctx context.Context, listed []string) error {
	l := r.db.lineage.Load()
	foreign, err := l.accept(r.Name(), listed, r.db.Pos().Generation)
	if err != nil {
		return err
	}
	for _, name := range foreign {
		snapshots, err := r.snapshotsOf(ctx, name)
		if err != nil {
			return err
		}
		if len(snapshots) > 0 {
			return fmt.Errorf("%w: it holds generation %s, which this database did not write; to take the replica over, close the database and remove %s", ErrReplicaMoved, name, l.name)
		}
	}
	return nil
}
