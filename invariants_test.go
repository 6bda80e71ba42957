package litestream_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/internal/walcheck"
	"example.com/litestream/replicatest"
)

// Every test of a database ends in a check of the invariants, see package
// walcheck: of the meta directory, which is that of a closed DB, and of what
// the replicas hold. newDB, newFixture and newServer register it; a test that
// constructs its DB calls checkAtEnd. One that leaves something broken on
// purpose says so with leaveUnchecked.

// checkedPart is a part of the check.
type checkedPart string

const (
	metaPart    checkedPart = "meta directory"
	replicaPart checkedPart = "replica"
	tempPart    checkedPart = "for unfinished files, the replica"
)

type uncheckedKey struct {
	test string
	part checkedPart
}

var unchecked sync.Map // uncheckedKey to reason

// leaveUnchecked takes a part out of the check at the end of the test.
func leaveUnchecked(t testing.TB, part checkedPart, reason string) {
	t.Helper()
	unchecked.Store(uncheckedKey{t.Name(), part}, reason)
}

// isUnchecked reports whether the test left the part out, and prints why.
func isUnchecked(t testing.TB, part checkedPart) bool {
	t.Helper()
	reason, ok := unchecked.Load(uncheckedKey{t.Name(), part})
	if ok {
		t.Logf("%s is not checked: %s", part, reason)
	}
	return ok
}

// checkAtEnd closes db when the test ends, and then checks the invariants.
func checkAtEnd(t testing.TB, db *litestream.DB) {
	t.Helper()
	t.Cleanup(func() {
		t.Helper()
		if err := db.Close(); err != nil {
			t.Errorf("close in cleanup: %v", err)
		}
		checkClosed(t, db)
	})
}

// checkClosed checks the invariants of a DB that is closed, and of its
// replicas.
func checkClosed(t testing.TB, db *litestream.DB) {
	t.Helper()
	meta := checkMeta(t, db.MetaPath())
	for _, r := range db.Replicas {
		if r != nil && r.Client() != nil && !isUnchecked(t, replicaPart) {
			checkReplicaOf(t, r.Client(), meta)
		}
	}
}

func checkMeta(t testing.TB, dir string) (meta walcheck.Meta) {
	t.Helper()
	if isUnchecked(t, metaPart) {
		return meta
	}
	meta, err := walcheck.MetaDir(dir)
	if err != nil {
		t.Errorf("meta directory: %v", err)
	}
	return meta
}

// checkReplica checks the invariants of every generation on a replica.
func checkReplica(t testing.TB, client litestream.ReplicaClient) {
	t.Helper()
	checkReplicaOf(t, client, walcheck.Meta{})
}

func checkReplicaOf(t testing.TB, client litestream.ReplicaClient, meta walcheck.Meta) {
	t.Helper()
	for { // that of the test may still fail
		switch c := client.(type) {
		case *replicatest.FaultClient:
			client = c.Unwrap()
			continue
		case *movableClient:
			client = c.ReplicaClient
			continue
		}
		break
	}
	if err := checkReplicaAgainst(client, meta); err != nil {
		t.Errorf("replica: %v", err)
	}
	if c, ok := client.(*fileclient.FileReplicaClient); ok && !isUnchecked(t, tempPart) {
		if err := checkReplicaFiles(c.Path()); err != nil {
			t.Errorf("replica: %v", err)
		}
	}
}

// checkReplicaFiles fails if a write left an unfinished file.
func checkReplicaFiles(dir string) error {
	err := filepath.WalkDir(dir, func(path string, ent fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".tmp") {
			err = fmt.Errorf("unfinished file %s", path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// checkReplicaAgainst checks the invariants of every generation on a replica,
// and that the current one is the same as in the meta directory.
func checkReplicaAgainst(client litestream.ReplicaClient, meta walcheck.Meta) error {
	generations, err := client.Generations(ctx)
	errs := []error{err}
	for _, generation := range generations {
		wals, err := checkGeneration(client, generation)
		if err == nil && generation == meta.Generation {
			err = walcheck.Agree(wals, meta.WALs)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("generation %s: %w", generation, err))
		}
	}
	return errors.Join(errs...)
}

// checkGeneration returns the WAL of each index from the oldest snapshot on.
func checkGeneration(client litestream.ReplicaClient, generation string) (map[int][]byte, error) {
	sitr, err := client.Snapshots(ctx, generation)
	if err != nil {
		return nil, err
	}
	infos, err := litestream.SliceSnapshotIterator(sitr)
	if err != nil || len(infos) == 0 {
		return nil, err // given up before its first snapshot
	}
	var snapshots []int
	for _, info := range infos {
		snapshots = append(snapshots, info.Index)
	}
	witr, err := client.WALSegments(ctx, generation)
	if err != nil {
		return nil, err
	}
	winfos, err := litestream.SliceWALSegmentIterator(witr)
	if err != nil {
		return nil, err
	}
	var segments []walcheck.Segment
	for _, info := range winfos {
		rc, err := client.WALSegmentReader(ctx, info.Pos())
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", info.Pos(), err)
		}
		segments = append(segments, walcheck.Segment{Index: info.Index, Offset: info.Offset, Data: b})
	}
	return walcheck.Generation(snapshots, segments)
}
