package litestream

import (
	"context"
	"fmt"
)

// WALSegments returns an iterator over the captured segments of the current
// generation, which goes on with those captured later. The DB ends it with an
// error that matches ErrGenerationChanged or ErrDBClosed. The caller closes
// it; until then, what it has not visited is not pruned (I7). For a generation
// that is not the current one the error matches ErrGenerationChanged.
func (db *DB) WALSegments(ctx context.Context, generation string) (*FileWALSegmentIterator, error) {
	if err := db.mu.LockContext(ctx); err != nil {
		return nil, fmt.Errorf("wal segments: %w", err)
	}
	defer db.mu.Unlock() // no segment is captured between the listing and the entry into the set
	if db.follower.Load() != nil {
		return nil, fmt.Errorf("wal segments: %w", ErrFollower)
	}
	if !db.mu.open {
		return nil, fmt.Errorf("wal segments: %w", errNotOpen)
	}
	if current := db.Pos().Generation; generation != current || current == "" {
		return nil, fmt.Errorf("wal segments of generation %q: %w: the current one is %q", generation, ErrGenerationChanged, current)
	}
	itr := NewFileWALSegmentIterator(db.ShadowWALDir(generation), generation, db.shadow.indexNumbers(generation))
	itr.onClose = db.forgetIterator
	db.iterators.Lock()
	defer db.iterators.Unlock()
	if db.iterators.set == nil {
		db.iterators.set = make(map[*FileWALSegmentIterator]struct{})
	}
	db.iterators.set[itr] = struct{}{}
	return itr, nil
}

// CloseWALSegmentIterator closes an iterator that WALSegments returned.
func (db *DB) CloseWALSegmentIterator(itr *FileWALSegmentIterator) error {
	if itr == nil {
		return nil
	}
	return itr.Close()
}

func (db *DB) forgetIterator(itr *FileWALSegmentIterator) {
	db.iterators.Lock()
	defer db.iterators.Unlock()
	delete(db.iterators.set, itr)
}

// openIterators returns the iterators that are in use.
func (db *DB) openIterators() []*FileWALSegmentIterator {
	db.iterators.Lock()
	defer db.iterators.Unlock()
	a := make([]*FileWALSegmentIterator, 0, len(db.iterators.set))
	for itr := range db.iterators.set {
		a = append(a, itr)
	}
	return a
}

// feedIterators appends what was captured after old.
func (db *DB) feedIterators(old, pos Pos) {
	itrs := db.openIterators()
	if len(itrs) == 0 || old.Generation != pos.Generation {
		return
	}
	for index := old.Index; index <= pos.Index; index++ {
		segments, err := db.shadow.segments(pos.Generation, index)
		for _, itr := range itrs {
			if err != nil {
				itr.SetErr(err)
				continue
			}
			for _, seg := range segments {
				if index == old.Index && seg.offset < old.Offset {
					continue
				}
				if err := itr.Append(WALSegmentInfo{pos.Generation, index, seg.offset, seg.size, seg.createdAt.UTC()}); err != nil {
					itr.SetErr(err)
				}
			}
		}
	}
}

// endIterators ends all iterators with err. Their users close them.
func (db *DB) endIterators(err error) {
	for _, itr := range db.openIterators() {
		itr.SetErr(err)
	}
}

// iteratorsNeed returns the lowest index that an iterator needs, or limit.
func (db *DB) iteratorsNeed(limit int) int {
	for _, itr := range db.openIterators() {
		if index, ok := itr.lowest(); ok {
			limit = min(limit, index)
		}
	}
	return limit
}
