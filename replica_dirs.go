package litestream

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
)

// replicaDirs holds the directories to which the open DBs of this process
// replicate: what two of them write to one is of no use.
var replicaDirs struct {
	sync.Mutex
	owners map[string]*DB
}

// dir returns the directory of a replica of files, "" for any other.
func (r *Replica) dir() string {
	if c, ok := r.client.(interface{ Path() string }); ok && r.client.Type() == "file" && c.Path() != "" {
		return resolvePath(c.Path())
	}
	return ""
}

// claimReplicaDirs takes the directories of the DB's replicas until
// releaseReplicaDirs, or fails if one of them is not for them alone.
func (db *DB) claimReplicaDirs() (err error) {
	replicaDirs.Lock()
	defer replicaDirs.Unlock()
	names := make(map[string]string)
	for _, r := range db.Replicas {
		dir := r.dir()
		if dir == "" {
			continue
		}
		other, owner := names[dir], replicaDirs.owners[dir]
		switch meta := db.MetaPath(); {
		case dir == db.real:
			return fmt.Errorf("replica %q: %s is the database itself; give the replica a directory of its own", r.Name(), dir)
		case dir == meta || strings.HasPrefix(dir, meta+string(filepath.Separator)):
			return fmt.Errorf("replica %q: %s is in %s, which the library prunes; give the replica a directory of its own", r.Name(), dir, meta)
		case other != "":
			return fmt.Errorf("replicas %q and %q: both write to %s; give each a directory of its own", other, r.Name(), dir)
		case owner != nil:
			return fmt.Errorf("replica %q: %s is that of %s, which is open; give each database a directory of its own", r.Name(), dir, owner.path)
		}
		names[dir] = r.Name()
	}
	if replicaDirs.owners == nil {
		replicaDirs.owners = make(map[string]*DB)
	}
	for dir := range names {
		replicaDirs.owners[dir] = db
	}
	return nil
}

func (db *DB) releaseReplicaDirs() {
	replicaDirs.Lock()
	defer replicaDirs.Unlock()
	maps.DeleteFunc(replicaDirs.owners, func(_ string, owner *DB) bool { return owner == db })
}
